"""`iq devices`: what kernels could run on here, and where their kernels would come from."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from iq.bundle import Bundles, best_match
from iq.cli.show import json_option, print_json, print_table
from iq.errors import BundleError, DeviceError, IqError
from iq.runtime.amd_gpus import amd_gpus
from iq.runtime.host import cpu_flags
from iq.targets import TARGETS, DeviceId

if TYPE_CHECKING:
    from iq.runtime.driver import Driver


class Found(msgspec.Struct):
    """A device.

    id: what artifacts are matched against. description: its maker's name of it. memory_total, memory_free: in bytes, None where it does not
    say. target: the target that iq compiles for it, "" where there is none. bundle: the target in the bundle that it would get, "" where
    there is none, None where no bundle is named. library: the driver that it was found with. requires: on a CPU, for each target of its
    instruction set whether it has what the target takes: "" where it has, else what it lacks. problem: why it cannot be used, or has no
    kernels.
    """

    device: str
    id: str = ""
    description: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    target: str = ""
    bundle: str | None = None
    library: str = ""
    requires: dict[str, str] = {}
    problem: str = ""


class Inventory(msgspec.Struct):
    """devices: those found. absent: for each API that has none, why. amd_gpus: what the kernel's driver lists, or why that is not known."""

    devices: list[Found]
    absent: dict[str, str]
    amd_gpus: list[str] | str


def inventory(bundle: str | Path | None) -> Inventory:
    """Every device of this machine. bundle: where kernels would come from. Raises a BundleError when there is no bundle at the path."""
    bundles = Bundles(bundle) if bundle else None
    found, absent = [_cpu()], {}
    for kind in ("hip", "cuda"):
        devices, why = _gpus(kind)
        found += devices
        if not devices:
            absent[kind] = why
    for device in found:
        if device.id:
            _match(device, bundles)
    seen = amd_gpus()
    return Inventory(found, absent, seen if isinstance(seen, str) else [gpu.arch for gpu in seen])


def _cpu() -> Found:
    flags = cpu_flags()
    cpus = [target for target in TARGETS.values() if target.isa and target.isa.name == platform.machine()]
    total, free = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    requires = {target.id: " ".join(sorted(target.cpu_requires - flags)) for target in cpus}
    return Found("cpu", "cpu", _cpu_name(), total, free, requires=requires)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpus(kind: str) -> tuple[list[Found], str]:
    """The devices of an API or, where there are none, why."""
    try:
        driver = driver_of(kind)
        count = driver.device_count()
    except DeviceError as error:
        return [], str(error)
    library = where_loaded(driver.path)
    found = []
    for index in range(count):
        device = Found(f"{kind}:{index}", library=library)
        found.append(device)
        try:
            device.description = driver.device_name(index)
            context = driver.open(index)
            try:
                device.id = str(DeviceId.parse(context.arch))
                device.memory_free, device.memory_total = context.memory_info()
            finally:
                context.close()
        except IqError as error:
            device.problem = str(error)
    return found, "" if found else f"{library} finds no device"


def _match(device: Found, bundles: Bundles | None) -> None:
    """Which target's kernels it would run, and whether a bundle has them."""
    identity, flags = DeviceId.parse(device.id), cpu_flags() if device.id == "cpu" else frozenset()
    try:
        device.target = best_match(TARGETS, identity, flags)
        if bundles:
            device.bundle = ""
            device.bundle = bundles.target(identity, flags).id
    except BundleError as error:
        device.problem = str(error)


def driver_of(kind: str) -> Driver:
    """The driver of "hip" or "cuda". Raises DeviceError."""
    # Imported here, because it is refused where IQ_LAUNCH is wrong, which other commands need not mind.
    from iq.runtime.driver import CUDA, HIP, load

    return load(HIP if kind == "hip" else CUDA)


def where_loaded(path: str) -> str:
    """The file of a library that this process has loaded by a path, or by a name that only the loader knows the place of."""
    if "/" in path:
        return path
    stem = path.partition(".so")[0] + ".so"
    for line in Path("/proc/self/maps").read_text().splitlines():
        mapped = Path(line.split(maxsplit=5)[-1])
        if mapped.name.startswith(stem) and mapped.is_absolute():
            return str(mapped)
    return path


@click.command("devices")
@click.option("--bundle", type=click.Path(path_type=Path), help="Say which devices this bundle has kernels for; IQ_BUNDLE_PATH by default.")
@json_option
def devices_command(bundle: Path | None, as_json: bool) -> None:
    """The devices of this machine: the CPU, and GPUs as their drivers list them; and which target's kernels each would run."""
    shown = inventory(bundle or os.environ.get("IQ_BUNDLE_PATH"))
    if as_json:
        print_json(shown)
        return
    print_table([_row(device) for device in shown.devices])
    for device in shown.devices:
        for target, lacking in device.requires.items():
            click.echo(f"{device.device}: " + (f"lacks {lacking} for {target}" if lacking else f"has all instruction sets of {target}"))
        if device.problem:
            click.echo(f"{device.device}: {device.problem}")
    for api, why in shown.absent.items():
        click.echo(f"no {api} device: {why}")
    if isinstance(shown.amd_gpus, str):
        click.echo(f"AMD GPUs without HIP: not known: {shown.amd_gpus}")
    elif "hip" in shown.absent:
        click.echo(f"AMD GPUs that the kernel's driver lists: {', '.join(shown.amd_gpus) or 'none'}")


def _row(device: Found) -> dict[str, Any]:
    def gib(nbytes: int | None) -> str:
        return "" if nbytes is None else f"{nbytes / (1 << 30):.1f} GiB"

    return {
        "device": device.device,
        "id": device.id,
        "name": device.description,
        "memory": gib(device.memory_total),
        "free": gib(device.memory_free),
        "target": device.target,
        "in_the_bundle": {None: "no bundle named", "": "no"}.get(device.bundle, device.bundle),
        "library": device.library,
    }
