"""Devices, buffers, kernels and quantized tensors. Needs IREE's runtime, never its compiler."""

from iq.runtime.buffer import Buffer
from iq.runtime.device import Device

__all__ = ["Buffer", "Device"]
