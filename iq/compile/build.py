"""From names to a bundle: which modules there are to compile, the compilers that run side by side, and what they leave."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import groupby
from pathlib import Path

import jinja2

from iq import bundle as bundles
from iq import kernels
from iq.cache import Cache
from iq.compile import diagnostics
from iq.compile.compiler import FLAGS, Compilations, Compiler
from iq.compile.notation import NotationError
from iq.compile.render import render
from iq.errors import CompileError, KernelKeyError
from iq.kernels import KernelSpec
from iq.targets import DeviceId, Target, parse_targets

# Progress callback: (modules done, modules in all, names of those being compiled).
Progress = Callable[[int, int, tuple[str, ...]], None]


@dataclass(frozen=True)
class Module:
    """The kernels of one format for one target: what one compiler run makes one vmfb of."""

    target: Target
    format: str
    specs: tuple[KernelSpec, ...]

    @property
    def name(self) -> str:
        return f"{self.target.id}/{self.format}"

    @property
    def title(self) -> str:
        """What it is called in an error: its kernel, where it holds but one."""
        return f"{self.specs[0].key} for {self.target.id}" if len(self.specs) == 1 else f"{self.name} ({len(self.specs)} kernels)"


def modules_of(target: Target, specs: Iterable[KernelSpec]) -> list[Module]:
    """The modules that hold those of these kernels that a target has, one for each format."""
    by_format = sorted((spec for spec in specs if spec.exists(target)), key=lambda s: s.format)
    return [Module(target, name, tuple(group)) for name, group in groupby(by_format, key=lambda s: s.format)]


def bundle(
    targets: str | Sequence[str],
    formats: str | Sequence[str] | None = None,
    ops: str | Sequence[str] | None = None,
    out: str | Path = "artifacts/",
    jobs: int | None = None,
    progress: Progress | None = None,
    packed: bool = False,
) -> list[Path]:
    """Compile kernels ahead of time, and write a bundle for each target: `out`/<target id>, or <target id>.zip when `packed`.

    targets: ids or groups ("gfx942", "cpu"). formats, ops: their names; None is all. Any of the three may be one comma-separated string.
    jobs: compilers at a time; None is one for each core. progress: told of each step.
    Returns the bundles' paths. They are written after everything has compiled, each whole or not at all: when a kernel fails, or on an
    interrupt before that, `out` is left as it was.

    Raises TargetError, FormatError or KernelKeyError for names that are unknown, CompileError for kernels that do not compile,
    NoCompilerError without a compiler, BundleError when something else than a bundle is in the way.
    """
    chosen = parse_targets(targets if isinstance(targets, str) else list(targets))
    specs = select(formats, ops)
    compiler = Compiler.find()
    modules = [module for target in chosen for module in modules_of(target, specs)]
    vmfbs = compile_modules(modules, compiler, Cache(), jobs or len(os.sched_getaffinity(0)), progress)
    made_by = bundles.Compiler(compiler.version, compiler.revision, FLAGS)
    paths = []
    for target in chosen:
        held = [bundles.Compiled(m.format, vmfbs[m], tuple(s.key for s in m.specs)) for m in modules if m.target == target]
        paths.append(Path(out) / (f"{target.id}.zip" if packed else target.id))
        bundles.write(paths[-1], DeviceId(target.id), held, made_by, templates_digest())
    return paths


def select(formats: str | Sequence[str] | None, names: str | Sequence[str] | None) -> list[KernelSpec]:
    """The kernels of these formats and ops; None is all. Raises FormatError; KernelKeyError for an unknown op or where nothing is left."""
    joined = [value if value is None or isinstance(value, str) else ",".join(value) for value in (formats, names)]
    specs = kernels.select(joined[0], joined[1])
    if not specs:
        raise KernelKeyError(f"the ops {joined[1]} have no kernels for the formats {joined[0]}; `iq ls` shows which have")
    return specs


def compile_modules(
    modules: Sequence[Module], compiler: Compiler, cache: Cache, jobs: int, progress: Progress | None = None
) -> dict[Module, Path]:
    """Compile modules, `jobs` at a time, and return each one's vmfb in the cache.

    Raises the first CompileError; then, and on an interrupt, the compilers still running are ended.
    """
    vmfbs: dict[Module, Path] = {}
    waiting = list(reversed(modules))
    running: dict[Future[Path], Module] = {}
    with ThreadPoolExecutor(jobs) as pool, Compilations(compiler) as compilations:
        while waiting or running:
            while waiting and len(running) < jobs:
                module = waiting.pop()
                running[pool.submit(compile_module, module, compilations, cache)] = module
            if progress:
                progress(len(vmfbs), len(modules), tuple(m.name for m in running.values()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                vmfbs[running.pop(future)] = future.result()
    if progress:
        progress(len(vmfbs), len(modules), ())
    return vmfbs


def compile_module(
    module: Module, compilations: Compilations, cache: Cache, starting: Callable[[Module], None] = lambda module: None
) -> Path:
    """The vmfb of a module in the cache, compiled if it is not there. starting: called before a compiler starts.

    Raises CompileError. It names one kernel: those of a module that fails are compiled one by one until the first that fails alone.
    """
    try:
        return _compile(module, compilations, cache, starting)
    except CompileError as error:
        if len(module.specs) > 1:
            for spec in module.specs:
                _compile(Module(module.target, module.format, (spec,)), compilations, cache, starting)
            error.add_note("Each of these kernels compiles when it is alone in a module.")
        raise


def mlir_of(module: Module) -> str:
    """The MLIR of a module. Raises CompileError, with the template's lines, for a fault in a template."""
    try:
        return render(module.specs, module.target)
    except jinja2.TemplateError as error:
        raise CompileError(f"{module.title} does not render:\n\n{diagnostics.show_template_fault(error)}") from error
    except NotationError as error:
        raise CompileError(f"{module.title} does not render:\n\n{diagnostics.show_line(error.text, error.line, str(error))}") from error


def _compile(module: Module, compilations: Compilations, cache: Cache, starting: Callable[[Module], None]) -> Path:
    mlir = mlir_of(module)
    path = cache.path(".vmfb", *compilations.compiler.inputs(mlir))
    if not path.is_file():
        starting(module)
        cache.store(path, compilations.compile(mlir, module.title))
    return path


def templates_digest() -> str:
    """sha256 over the names and texts of all templates, in hex."""
    digest = hashlib.sha256()
    for name, text in sorted(_templates(resources.files("iq") / "templates")):
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def _templates(directory: Traversable, prefix: str = "") -> Iterable[tuple[str, bytes]]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _templates(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".j2"):
            yield f"{prefix}{entry.name}", entry.read_bytes()
