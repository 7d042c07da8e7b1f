"""A linear layer with a quantized weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iq import formats, gguf
from iq.errors import ShapeError
from iq.formats import format_of
from iq.qtensor import weights_format
from iq.torch.operators import dequantize, padded
from iq.torch_tensors import SPARE_BYTES


class QLinear(torch.nn.Module):
    """torch.nn.Linear with a quantized weight: y = x W^T + bias.

    weight: a uint8 parameter of GGML blocks, [out_features, bytes of a row], without gradient and with the spare bytes that kernels need.
    in_features, out_features: K and N. format: the format's name. via: as in QTensor.matmul. bias: a buffer [N], or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        format: str,
        bias: bool = False,
        *,
        via: str | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """A layer of zeros, to load a state_dict into. dtype: of the bias. Raises FormatError or ShapeError."""
        super().__init__()
        fmt = weights_format(format)
        if in_features % fmt.kernel_block_weights():
            raise ShapeError(f"QLinear: in_features is a multiple of {fmt.kernel_block_weights()} for {fmt.name}, not {in_features}")
        self.in_features, self.out_features, self.format, self.via = in_features, out_features, fmt.name, via
        weight = torch.zeros(out_features * fmt.row_bytes(in_features) + SPARE_BYTES, dtype=torch.uint8, device=device)
        weight = weight[:-SPARE_BYTES].view(out_features, fmt.row_bytes(in_features))
        self.weight = torch.nn.Parameter(padded(weight), requires_grad=False)
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_float(cls, linear: Any, format: str, imatrix: Any = None) -> QLinear:
        """A torch.nn.Linear quantized, on its device. imatrix: float32 [K], each column's importance. Raises FormatError, ShapeError."""
        weight = linear.weight.detach()
        n, k = weight.shape
        packed = formats.quantize(weight.float().cpu().numpy(), format_of(format).name, None if imatrix is None else np.asarray(imatrix))
        layer: QLinear = cls._of(torch.from_numpy(packed), format, n, k).to(weight.device)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().clone()
        return layer

    @classmethod
    def from_gguf(cls, file: gguf.GGUFFile | str | Path, name: str) -> QLinear:
        """A tensor [N, K] of a GGUF file, on the CPU. Raises GGUFError, FormatError, ShapeError."""
        if not isinstance(file, gguf.GGUFFile):
            with gguf.open(file) as opened:
                return cls.from_gguf(opened, name)
        packed, format, shape = file.packed(name)
        if len(shape) != 2:
            raise ShapeError(f"QLinear: takes a weight of shape (N, K); {name!r} has {shape}")
        return cls._of(torch.from_numpy(packed), format, *shape)

    @classmethod
    def _of(cls, packed: Tensor, format: str, n: int, k: int) -> QLinear:
        """A layer of these blocks, which are copied."""
        layer = cls(k, n, format)
        layer.weight.copy_(packed.view(layer.weight.shape))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """[..., N] of x's dtype for x [..., K]: float32, float16 or bfloat16."""
        y = torch.ops.iq.mul_mat(self.weight, x, self.format, self.out_features, self.via)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self, dtype: Any = torch.float32) -> Tensor:
        """The weight [N, K] as numbers."""
        return dequantize(self.weight, self.format, (self.out_features, self.in_features), dtype)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.format!r}, bias={bias}"

    # Whatever replaces the weight leaves out its spare bytes: they are given back once, here.

    def _pad(self) -> None:
        weight = self.weight.data
        if (better := padded(weight)) is not weight:
            self.weight.data = better

    def _apply(self, fn: Any, recurse: bool = True) -> QLinear:
        super()._apply(fn, recurse)
        self._pad()
        return self

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._pad()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (metadata := getattr(destination, "_metadata", None)) is not None:
            metadata.setdefault(prefix[:-1], {})["format"] = self.format

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: list[str]
    ) -> None:
        # q4_0 and q4_k have blocks of as many bytes: the shape alone does not tell them apart.
        held = metadata.get("format", self.format)
        if held != self.format:
            errors.append(f"{prefix}weight holds {held}, the layer takes {self.format}")
            return
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        self._pad()
