"""Operators of torch on GGML-quantized weights, and a linear layer: for autograd, `torch.compile` and models of torch.

`import iq.torch` defines `torch.ops.iq.mul_mat`, `dequantize`, `get_rows` and `moe`; see docs/torch.md. A weight is a uint8 tensor of GGML
blocks.
Work is enqueued on torch's current stream of the tensors' device. That device is iq's "cpu", "cuda:N" or, with torch for ROCm, "hip:N",
with the kernels that IQ_BUNDLE_PATH names, or compiled when they are first needed (call everything once before a `torch.cuda.graph`).
"""

from iq.extras import missing

if lacking := missing("torch"):
    raise ModuleNotFoundError(f"iq.torch: {lacking}", name="torch")

from iq.torch.layer import QLinear
from iq.torch.operators import dequantize, get_rows, moe, mul_mat, padded

__all__ = ["QLinear", "dequantize", "get_rows", "moe", "mul_mat", "padded"]
