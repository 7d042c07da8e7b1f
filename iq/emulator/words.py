"""What registers and memory hold: words of 32 bits, for many waves or lanes at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

# What a register holds that nobody wrote: NaN as f32, as both f16 and as both bf16, and no address.
POISON = np.uint32(0x7FD5_7FD5)
