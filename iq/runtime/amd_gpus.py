"""AMD GPUs that the machine has, whether or not a HIP runtime is installed: what the kernel's driver (amdgpu) lists of them.

AMD's package rocm-bootstrap reads that (30 kB, without dependencies); it comes with the extra `amd`. Without it nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from iq.extras import install, missing


@dataclass(frozen=True)
class AmdGpu:
    """arch: "gfx942". node: its number in the driver's list of CPUs and GPUs, which is not HIP's number of it."""

    arch: str
    node: int


def amd_gpus() -> tuple[AmdGpu, ...] | str:
    """The AMD GPUs that the driver lists, or why that is not known, as a clause."""
    if missing("amd"):
        return f"rocm-bootstrap, which finds them, is not installed ({install('amd')})"
    try:
        found = import_module("rocm_bootstrap").detect_gpus()
    except (OSError, ValueError) as error:  # a list that cannot be read, a GPU that the package does not know
        return f"rocm-bootstrap cannot tell: {error}"
    return tuple(AmdGpu(gpu.target.name, gpu.node_id) for gpu in found)


def what_is_seen() -> str:
    """A sentence for people about the AMD GPUs of this machine; "" where nothing is known."""
    found = amd_gpus()
    if isinstance(found, str):
        return ""
    if not found:
        return "This machine shows no AMD GPU: amdgpu, the kernel's driver, lists none (in a container, /dev/kfd has to be passed on)."
    return f"This machine has {'AMD GPUs' if found[1:] else 'an AMD GPU'}: {', '.join(gpu.arch for gpu in found)}."
