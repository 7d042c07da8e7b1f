"""The devices that a bundle's kernels are verified on: the one that they are for, where this machine has it, or an emulated AMD GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from iq.bundle import read_manifest
from iq.device import Device
from iq.errors import TargetError
from iq.runtime import Device as RuntimeDevice
from iq.targets import Target

if TYPE_CHECKING:
    from iq.emulator.device import Launch

# What a reader of results from an emulated GPU has to know.
EMULATED = "Executed under ISA emulation, not validated on hardware."
APPROXIMATIONS = (
    "Reciprocals, roots, exponentials, logarithms, sines: rounded correctly; hardware is off by an ulp or so.",
    "MFMA and WMMA: products and C are added up in f64 and rounded once; hardware's order and internal precision are not documented.",
    "No timing: s_waitcnt, s_delay_alu and the waits between dependent instructions do nothing, so one that is missing does not show.",
    "Memory is coherent and without caches; waves run one instruction at a time, in an order drawn at random.",
)

# The runtime's name of the device that a family of targets is for.
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "rocm": "hip"}


@dataclass(frozen=True)
class Opened:
    """An open device. how, approximations: see TargetReport. launches: where an emulated GPU lists what it ran; empty on others."""

    device: RuntimeDevice
    how: str
    approximations: tuple[str, ...] = ()
    launches: Sequence[Launch] = ()


class Opener(Protocol):
    """Opens a device for a target, with the kernels of the bundle at a path. Raises IqError where it cannot be had."""

    def __call__(self, target: Target, bundle: Path) -> Opened: ...


def open_emulated(target: Target, bundle: Path) -> Opened:
    """An emulated GPU with the settings of xnack and sramecc that the bundle is pinned to.

    Raises TargetError for a target that is not ROCm, and what opening the device raises.
    """
    if target.family != "rocm":
        raise TargetError(f"{target.id} cannot be emulated, only ROCm targets can; run its kernels on a device (iq verify --run)")
    device = Device(f"emulated:{read_manifest(bundle).target}", bundle=bundle)
    assert device.emulated
    return Opened(device, EMULATED, APPROXIMATIONS, device.emulated.launches)


def open_real(target: Target, bundle: Path) -> Opened:
    """The device of this machine that the bundle is for.

    Raises DeviceError where there is none, NoArtifactError where there is one of another processor.
    """
    device = Device(_DEVICES[target.family], bundle=bundle)
    assert device.target == target  # else NoArtifactError: the bundle holds one target
    return Opened(device, "Run on this CPU." if device.is_cpu else f"Run on this machine's {device.name}, a {device.id}.")
