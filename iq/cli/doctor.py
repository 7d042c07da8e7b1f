"""`iq doctor`: what would run here, from where, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click
import msgspec
import numpy as np

from iq import __version__
from iq.bundle import find, read_manifest
from iq.cli.devices import driver_of, where_loaded
from iq.cli.show import json_option, print_json, print_table
from iq.device import Device
from iq.errors import DeviceError, IqError, KernelKeyError
from iq.extras import EXTRAS, install, missing
from iq.formats import format_of
from iq.kernels import KernelSpec
from iq.qtensor import QTensor
from iq.runtime.amd_gpus import what_is_seen
from iq.runtime.driver import hip_library


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    verdict: "ok"; "note" for what works in a lesser way; "missing" for what is not needed everywhere; "fails" for what should work.
    found: what there is. advice: what to do about it, "" for nothing.
    """

    name: str
    verdict: str
    found: str
    advice: str = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """checks: in the order that people read them. runs: whether the default device can run a kernel."""

    checks: tuple[Check, ...]
    runs: bool


def diagnose() -> Diagnosis:
    """Look at this machine. Nothing is compiled."""
    runs = _run()
    checks = (
        Check("versions", "ok", f"iq {__version__}, Python {platform.python_version()}, numpy {np.__version__}"),
        _default_device(),
        _kernels(),
        runs,
        _iree(),
        _compiler(),
        _launcher(),
        _driver("hip"),
        _driver("cuda"),
        _torch(),
        *_extras(),
        *_emulator(),
    )
    return Diagnosis(checks, runs.verdict != "fails")


def _default_device() -> Check:
    named = os.environ.get("IQ_DEVICE")
    return Check("default device", "ok", f"{named}, as IQ_DEVICE says" if named else "cpu, because IQ_DEVICE is not set")


def _kernels() -> Check:
    """Where kernels come from."""
    name = "kernels"
    if path := os.environ.get("IQ_BUNDLE_PATH"):
        try:
            targets = [read_manifest(found).target for found in find(path)]
        except (IqError, OSError) as error:
            return Check(name, "fails", f"IQ_BUNDLE_PATH={path}: {error}", "name a bundle, or unset it")
        return Check(name, "ok", f"from the bundles at IQ_BUNDLE_PATH={path}, for {', '.join(targets)}")
    if os.environ.get("IQ_DISABLE_COMPILE"):
        return Check(
            name, "fails", "from nowhere: IQ_DISABLE_COMPILE is set, and IQ_BUNDLE_PATH is not", "name a bundle with IQ_BUNDLE_PATH"
        )
    if lacking := missing("compile"):
        return Check(name, "fails", f"from nowhere: IQ_BUNDLE_PATH is not set, and {lacking}", "name a bundle with IQ_BUNDLE_PATH")
    from iq.cache import Cache

    folder = Cache().directory
    kept = sum(1 for _ in folder.glob("*.vmfb"))
    return Check(name, "ok", f"compiled when they are first needed, and kept in {folder} (IQ_CACHE_DIR), which has {kept} modules")


def _run() -> Check:
    """Whether the default device runs kernels: one of the bundle is run; where there is none, whether one could be compiled."""
    name = "running"
    try:
        device = Device()
        target = device.target
        path = os.environ.get("IQ_BUNDLE_PATH")
        if not path:
            return Check(name, "ok", f"{_named(device)} opens; kernels for {target.id} would be compiled, none has been tried")
        ran = _run_of_bundle(device, path)
    except (IqError, OSError) as error:
        return Check(
            name, "fails", "\n".join([str(error), *getattr(error, "__notes__", ())]), "`iq devices` lists the devices of this machine"
        )
    return Check(name, "ok", f"{_named(device)} {ran} of the bundle for {target.id}")


def _run_of_bundle(device: Device, path: str) -> str:
    """Run a kernel that dequantizes zeros or, where a bundle has none, load another one; what was done. Raises IqError."""
    keys = [
        kernel.key for found in find(path) for kernel in read_manifest(found).kernels if read_manifest(found).target == device.target.id
    ]
    specs = [spec for spec in map(_known, keys) if spec]
    converts = next((spec for spec in specs if spec.op == "dequantize" and spec.variant == "f32"), None)
    if converts is None:
        if not specs:
            raise KernelKeyError(f"{path}: none of its {len(keys)} kernels is known to this version of iq; compile it again")
        device.library.kernel(specs[0])
        return f"loads {specs[0].key}"
    fmt = format_of(converts.format)
    weights = fmt.kernel_block_weights()
    values = QTensor.from_bytes(np.zeros(fmt.row_bytes(weights), np.uint8), fmt.name, (weights,), device).dequantize().numpy()
    if values.any():
        raise DeviceError(f"{device.name} dequantizes zeros to {values[values != 0][0]} with {converts.key}")
    return f"runs {converts.key}"


def _named(device: Device) -> str:
    return device.name if device.is_cpu else f"{device.name}, a {device.id},"


def _known(key: str) -> KernelSpec | None:
    try:
        return KernelSpec.parse(key)
    except KernelKeyError:
        return None


def _version(distribution: str) -> str:
    """The version of what is installed, "" where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _iree() -> Check:
    version = _version("iree-base-runtime")
    if version:
        return Check("IREE's runtime", "ok", f"iree-base-runtime {version}: for the CPU, and for Device(runtime='iree')")
    return Check("IREE's runtime", "missing", "no CPU device; GPUs do without", "pip install iree-base-runtime")


def _compiler() -> Check:
    if lacking := missing("compile"):
        return Check("compiler", "missing", f"kernels come from bundles only: {lacking}", install("compile"))
    from iq.compile.compiler import Compiler

    try:
        found = Compiler.find()
    except (IqError, OSError) as error:
        return Check("compiler", "fails", str(error), install("compile"))
    return Check("compiler", "ok", f"IREE {found.version}, {found.executable}")


def _launcher() -> Check:
    name, wanted = "launcher", os.environ.get("IQ_LAUNCH")
    try:
        from iq.runtime.launching import IMPLEMENTATION
    except IqError as error:
        return Check(name, "fails", str(error), "unset IQ_LAUNCH")
    why = f", as IQ_LAUNCH={wanted} says" if wanted else ""
    if IMPLEMENTATION == "extension":
        return Check(name, "ok", f"the extension{why}")
    return Check(
        name,
        "note",
        f"ctypes{why}: a call on a GPU takes about 5 us longer than by the extension",
        "unset IQ_LAUNCH" if wanted else "the wheel for Linux on x86-64 has the extension; where pip builds it, that takes a C compiler",
    )


def _driver(kind: str) -> Check:
    name = {"hip": "HIP library", "cuda": "CUDA driver"}[kind]
    try:
        driver = driver_of(kind)
        count = driver.device_count()
    except DeviceError as error:
        seen = what_is_seen() if kind == "hip" else ""
        return Check(name, "missing", f"{_first_sentence(error)}. {seen}".strip(), "`iq devices` has all that was tried")
    return Check(name, "ok", f"{where_loaded(driver.path)}, {count} device{'s' * (count != 1)}")


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _torch() -> Check:
    """Whether PyTorch, where it is there, works with the HIP library that iq takes: a process can have only one."""
    name, spec, version = "torch", find_spec("torch"), _version("torch")  # which does not import it
    if spec is None:
        return Check(name, "missing", "not installed, which iq does without")
    bundled = [p for folder in spec.submodule_search_locations or () for p in sorted((Path(folder) / "lib").glob(f"{hip_library.NAME}*"))]
    if not bundled:
        rocm = "rocm" in version
        return Check(name, "ok", f"torch {version}, {'with the HIP library of this machine' if rocm else 'not for ROCm'}")
    try:
        taken = Path(where_loaded(driver_of("hip").path)).resolve()
    except DeviceError as error:
        return Check(name, "note", f"torch {version} has {bundled[0]}, which is not in use: {_first_sentence(error)}")
    if taken in {p.resolve() for p in bundled}:
        return Check(name, "ok", f"torch {version}, whose HIP library is the one in use: {taken}")
    return Check(
        name,
        "note",
        f"torch {version} has a HIP library of its own, {bundled[0]}, and iq takes {taken}: a process can have only one",
        f"import torch before a device is opened, or set {hip_library.VARIABLE}=file:{bundled[0]}",
    )


def _extras() -> Iterator[Check]:
    for extra in EXTRAS:
        if lacking := missing(extra):
            yield Check(f"extra {extra}", "missing", lacking, install(extra))
        else:
            yield Check(f"extra {extra}", "ok", "installed")


def _emulator() -> Iterator[Check]:
    """What emulated devices take beside their extra."""
    from iq.inspect import Objdump

    found = Objdump.find()
    if isinstance(found, str):
        yield Check("disassembler", "missing", found, "emulated devices and `iq inspect` take one")
    else:
        yield Check("disassembler", "ok", found.executable)
    named = os.environ.get("CC", "cc")
    compiler = shutil.which(named)
    if compiler:
        yield Check("C compiler", "ok", compiler)
    else:
        yield Check("C compiler", "missing", f"there is no {named} on PATH, which emulated devices take", "apt-get install gcc libc6-dev")


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """What would run on this machine, from where, and what is missing. Exit status 1 where the default device cannot run a kernel."""
    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis)
    else:
        print_table([{"what": check.name, "verdict": check.verdict, "found": check.found} for check in diagnosis.checks])
        for check in diagnosis.checks:
            if check.advice:
                click.echo(f"{check.name}: {check.advice}")
    if not diagnosis.runs:
        sys.exit(1)
