"""Devices, buffers and kernels. GPUs need their driver alone, CPUs IREE's runtime; nothing here needs the compiler."""

from iq.runtime.buffer import Buffer
from iq.runtime.device import Device

__all__ = ["Buffer", "Device"]
