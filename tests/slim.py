"""A matvec on a GPU, here an emulated one, without IREE's runtime: `python tests/slim.py BUNDLES` (see `make test-deploy`)."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import iq

device = iq.Device("emulated:gfx1100", bundle=sys.argv[1])
w = iq.QTensor.quantize(np.ones((8, 64), np.float32), "q4_0", device)
assert w.matmul(np.ones((1, 64), np.float32)).numpy().tolist() == [[64.0] * 8]
assert find_spec("iree") is None
packages = ("iq", "ml_dtypes", "msgspec")
size = sum(file.stat().st_size for name in packages for file in Path(find_spec(name).origin).parent.rglob("*") if file.suffix != ".pyc")
print(f"a matvec without IREE's runtime; {', '.join(packages)} take {size / 1e6:.1f} MB beside numpy")
assert size < 15e6
