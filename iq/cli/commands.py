"""`iq ...`: the command line. Facts go to stdout, progress and errors to stderr.

Exit status: 0; 1 when it ran and the answer is no; 2 for misuse, an unknown name among it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from iq import __version__
from iq.bundle import Bundle, find, read_manifest
from iq.cli.bench import bench_command
from iq.cli.devices import devices_command
from iq.cli.doctor import doctor_command
from iq.cli.quantize import quantize_command
from iq.cli.show import json_option, print_json, print_list, print_table, progress
from iq.errors import BundleError, FormatError, IqError, KernelKeyError, NoArtifactError, ShapeError, TargetError
from iq.extras import extra_of, install
from iq.gpu_names import products_of
from iq.kernels import KernelSpec, Problem
from iq.kernels import kernels as all_kernels
from iq.targets import TARGETS, Target, parse_targets


class _Group(click.Group):
    """Shows what iq refuses as one message, with the exit status that fits."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (FormatError, KernelKeyError, ShapeError, TargetError) as error:
            raise click.UsageError(str(error)) from error
        except (IqError, OSError) as error:
            raise click.ClickException("\n".join([str(error), *getattr(error, "__notes__", ())])) from error
        except ModuleNotFoundError as error:
            extra = extra_of(error.name or "")
            if extra is None:
                raise
            raise click.ClickException(f"this command needs {error.name}, which is not installed: {install(extra)}") from error


def _one_target(context: click.Context, parameter: click.Parameter, name: str) -> Target:
    targets = parse_targets(name)
    if len(targets) != 1:
        raise TargetError(f"one target is wanted, but {name!r} is {', '.join(t.id for t in targets)}")
    return targets[0]


_target = click.option("--target", required=True, callback=_one_target, help="A target's id or a product's name (see `iq targets`).")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="iq")
def main() -> None:
    """GGML-quantized tensor ops: compile kernels, look at them, quantize models."""


for _command in (bench_command, devices_command, doctor_command, quantize_command):
    main.add_command(_command)


@main.command("compile")
@click.option("--target", "targets", required=True, help="Ids, products or groups: gfx942,rx7900xtx,cpu (`iq targets` lists them).")
@click.option("--format", "formats", help="Comma-separated formats; all by default.")
@click.option("--op", "op_names", help="Comma-separated ops; all by default.")
@click.option("--out", default="artifacts", show_default=True, type=click.Path(path_type=Path), help="Where the bundles go.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time; one for each core by default.")
@click.option("--zip", "packed", is_flag=True, help="Write each bundle as one zip rather than a directory.")
@json_option
def compile_command(
    targets: str, formats: str | None, op_names: str | None, out: Path, jobs: int | None, packed: bool, as_json: bool
) -> None:
    """Compile kernels ahead of time into a bundle for each target."""
    from iq.compile.build import bundle

    with progress() as step:
        paths = bundle(targets, formats, op_names, out, jobs, step, packed)
    _show_bundles(paths, as_json)


@main.command("ls")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--kernels", is_flag=True, help="Every kernel, one key a line.")
@json_option
def ls_command(path: Path | None, kernels: bool, as_json: bool) -> None:
    """What the bundles at PATH hold; without PATH, the kernels that iq can compile."""
    if path:
        paths = find(path)
        if kernels:
            print_list(sorted({k.key for p in paths for k in read_manifest(p).kernels}), as_json)
        else:
            _show_bundles(paths, as_json)
    elif kernels:
        print_list([k.key for k in all_kernels()], as_json)
    else:
        variants: dict[tuple[str, str], list[str]] = {}
        for spec in all_kernels():
            if not spec.schedule:
                variants.setdefault((spec.op, spec.format), []).append(spec.variant)
        rows = [{"op": op, "format": fmt, "variants": named} for (op, fmt), named in variants.items()]
        print_table(rows, as_json)


@main.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--run", is_flag=True, help="Also run every kernel on the device that its bundle is for, and compare with numpy.")
@click.option("--emulate", is_flag=True, help="Also run every ROCm kernel on an emulated GPU, and compare with numpy.")
@click.option("--target", "targets", help="What to run: comma-separated targets; by default all bundles at PATH that can be run.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write a report of the run as HTML.")
@json_option
def verify_command(path: Path, run: bool, emulate: bool, targets: str | None, report: Path | None, as_json: bool) -> None:
    """Check the bundles at PATH: manifest, digests, bytecode, the target of the code inside; and of AMD GPUs' machine code, where this
    machine has a disassembler for it, that what is loaded is waited for before it is used. Every kernel of a bundle that this CPU can run
    is run, and compared with numpy.

    --run shows each kernel, and runs those for this machine's GPU too. --emulate runs ROCm kernels under ISA emulation, which is not
    validation on hardware.
    """
    if run and emulate:
        raise click.UsageError("--run and --emulate are two ways to run the same kernels: give one of them")
    if not (run or emulate) and (targets or report):
        raise click.UsageError("--target and --report go with --run or --emulate")
    rows = []
    for found in find(path):
        row = {"bundle": str(found), "target": "", "kernels": 0, "verdict": "ok", "waits": "", "ran": "", "reason": ""}
        try:
            bundle = Bundle.open(found)
            row |= {"target": bundle.manifest.target, "kernels": len(bundle.manifest.kernels)}
            bundle.verify()
            if bundle.target.family == "rocm":
                row |= _check_waits(bundle)
            elif bundle.target.family == "cpu" and not (run or emulate):
                row |= _run_on_this_cpu(bundle)
        except (BundleError, KernelKeyError) as error:  # keys of another version of iq, for one
            row |= {"verdict": type(error).__name__, "reason": str(error)}
        rows.append(row)
    sound = not any(row["reason"] for row in rows)
    if not (run or emulate) or not sound:  # nothing of a bundle runs that is not what it says
        print_table(rows, as_json)
    if not sound or ((run or emulate) and not _run_kernels(path, emulate, targets, report, as_json)):
        sys.exit(1)


def _check_waits(bundle: Bundle) -> dict[str, str]:
    """What a row of `iq verify` says of the waits in a ROCm bundle's machine code."""
    from iq.inspect.waits import check_bundle

    findings = check_bundle(bundle)
    if isinstance(findings, str):
        click.echo(f"{bundle.path}: waits are not checked: {findings}", err=True)
        return {"waits": "not checked"}
    if not findings:
        return {"waits": "ok"}
    more = f"; and {len(findings) - 1} more" if findings[1:] else ""
    return {"verdict": "MissingWait", "waits": f"{len(findings)} missing", "reason": f"{findings[0]}{more}"}


def _run_on_this_cpu(bundle: Bundle) -> dict[str, str]:
    """What a row of `iq verify` says of the kernels of a CPU bundle, each of them run."""
    from iq.verify.devices import open_real
    from iq.verify.run import verify_bundle

    try:
        open_real(bundle.target, bundle.path)
    except NoArtifactError as error:
        click.echo(f"{bundle.path}: its kernels are not run: {error}", err=True)
        return {"ran": "not on this CPU"}
    with progress() as step:
        total = len(bundle.manifest.kernels)
        result = verify_bundle(bundle, open_real, step=lambda done, name: step(done, total, (name,) if name else ()))
    failed = [kernel for kernel in result.kernels if not kernel.passed]
    ran = {"ran": f"{total} kernels, {len(failed)} failed"}
    return ran | ({"verdict": "KernelsFailed", "reason": f"{failed[0].key}: {failed[0].worst}"} if failed else {})


def _run_kernels(path: Path, emulate: bool, targets: str | None, report: Path | None, as_json: bool) -> bool:
    """Run the kernels, show what came of it, and say whether all is well."""
    from iq.verify import report as reports
    from iq.verify.devices import open_emulated, open_real
    from iq.verify.run import verify

    with progress() as step:
        results = verify(path, open_emulated if emulate else open_real, targets, step)
    if report:
        report.write_text(reports.html(results), encoding="utf-8")
    if as_json:
        print_json(results)
        return all(result.passed for result in results)
    for result in results:
        if result.not_run:
            click.echo(f"{result.bundle}: not run: {result.not_run.splitlines()[0]}\n")  # --json has all of it
            continue
        click.echo(f"{result.bundle}: {result.how}")
        print_table(reports.rows(result))
        failed = sum(not kernel.passed for kernel in result.kernels)
        click.echo(f"{len(result.kernels)} kernels, {failed} failed, {result.seconds:.0f} s\n")
    for note in dict.fromkeys(note for result in results for note in result.approximations):
        click.echo(f"approximate: {note}")
    return all(result.passed for result in results)


@main.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--kernel", "pattern", default="*", help="Only functions and dispatches of this name; * and ? as in a shell.")
@json_option
def inspect_command(path: Path, pattern: str, as_json: bool) -> None:
    """What the compiler made of the kernels in a vmfb, or in the bundles at PATH: registers, memory, instructions."""
    from iq.inspect import inspect

    reports = inspect(path, pattern)
    if as_json:
        print_json(reports)
    for report in () if as_json else reports:
        click.echo(f"{report.file}: {report.processor}")
        for note in report.notes:
            click.echo(f"  note: {note}")
        click.echo(f"  functions: {', '.join(report.functions)}")
        mixes = [", ".join(f"{n} {name}" for name, n in (d.mix or {}).items()) for d in report.dispatches]
        print_table([{"dispatch": d.name, **d.facts, "instructions": mix} for d, mix in zip(report.dispatches, mixes, strict=True)])
        click.echo()
    if not reports:
        raise click.ClickException(f"nothing in {path} is called {pattern!r}")


@main.command("extract")
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where to; a folder in it for each of several bundles."
)
@click.option("--format", "formats", help="Comma-separated formats; all by default.")
@click.option("--kernel", "pattern", default="*", help="Only kernels with such a key; * and ? as in a shell.")
@json_option
def extract_command(path: Path, out: Path, formats: str | None, pattern: str, as_json: bool) -> None:
    """Write the code objects of the bundles at BUNDLE, and how their kernels are launched, for hosts without Python: files that
    hipModuleLoadData and cuModuleLoadData take, launch.json, and the C header iq_kernels.h.
    """
    from iq.bundle.extract import extract

    extracted = extract(path, out, formats, pattern)
    rows = [
        {
            "folder": str(folder),
            "target": table.target,
            "kernels": len(table.kernels),
            "files": [file.name for file in table.files],
            "bytes": sum(file.size for file in table.files),
        }
        for folder, table in extracted
    ]
    print_table(rows, as_json)


@main.command("render")
@click.argument("key")
@_target
def render_command(key: str, target: Target) -> None:
    """Print the MLIR of a kernel (`iq ls --kernels` lists the keys)."""
    from iq.compile.build import Module, mlir_of

    spec = KernelSpec.parse(key)
    click.echo(mlir_of(Module(target, spec.format, (spec,))), nl=False)


@main.command("targets")
@json_option
def targets_command(as_json: bool) -> None:
    """The targets that iq compiles for, and the products that have them, whose names stand for them in --target."""
    shown = ("id", "family", "wave", "dot", "matrix_cores", "lds")
    rows = [
        {name: getattr(t, name) for name in shown}
        | {"matrix": t.matrix.name if t.matrix else "", "cpu_requires": sorted(t.cpu_requires), "products": products_of(t.id)}
        for t in TARGETS.values()
    ]
    print_table(rows, as_json)


@main.command("explain")
@click.option("--format", "format_name", required=True, help="The weight's format.")
@_target
@click.option("--m", required=True, type=int, help="Rows of activations; with --experts, picks.")
@click.option("--n", required=True, type=int, help="Rows of the weight.")
@click.option("--k", required=True, type=int, help="Length of a row.")
@click.option("--experts", default=0, help="Of so many weights, each pick takes one (QTensor.moe).")
@click.option("--via", help="What the activations become: q8_1 or float; by default what format, target and shape suggest.")
@json_option
def explain_command(format_name: str, target: Target, m: int, n: int, k: int, experts: int, via: str | None, as_json: bool) -> None:
    """Which kernel multiplies a matrix, why, what else there is, and how it is laid over the target."""
    from iq.compile.explain import explain

    explanation = explain(format_name, target, Problem(m, n, k, experts), via)
    if as_json:
        print_json(explanation)
        return
    click.echo(f"{explanation.key} on {explanation.target}\nwhy: {explanation.why}\nothers: {', '.join(explanation.others) or 'none'}")
    print_table(
        [{"dispatch": d["name"], **{k: v for k, v in d.items() if k != "name"}} for d in map(dataclasses.asdict, explanation.dispatches)]
    )


def _show_bundles(paths: Iterable[Path], as_json: bool) -> None:
    manifests = {str(path): read_manifest(path) for path in paths}
    if as_json:
        print_json([{"path": path} | msgspec.to_builtins(m) for path, m in manifests.items()])
        return
    print_table(
        [
            {
                "bundle": path,
                "target": m.target,
                "kernels": len(m.kernels),
                "formats": m.formats,
                "bytes": sum(f.size for f in m.files),
                "compiler": m.compiler.version,
            }
            for path, m in manifests.items()
        ]
    )
