"""IREE's compiler, one process a module: an LLVM fatal error ends the process it happens in, and must not be ours."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from dataclasses import dataclass
from types import TracebackType

from iq.compile import diagnostics
from iq.errors import CompileError, NoCompilerError
from iq.extras import install

# Targets stand in the modules themselves. No source locations and debug information: they would be most of the file, and with paths in it.
FLAGS = ("--iree-vm-bytecode-module-strip-source-map=true", "--iree-hal-executable-debug-level=0")


@dataclass(frozen=True)
class Compiler:
    """An installed compiler: its executable, its version and git revision."""

    executable: str
    version: str
    revision: str

    @classmethod
    def find(cls) -> Compiler:
        """The compiler of the package iree-base-compiler (or of IREE_TOOL_PATH). Raises NoCompilerError where there is none."""
        try:
            from iree.compiler.tools import binaries

            executable = binaries.find_tool("iree-compile")
        except (ImportError, ValueError) as error:
            raise NoCompilerError(f"the compiler is not installed ({error}): {install('compile')}, or use a bundle") from error
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"IREE compiler version (\S+) @ (\w+)", said)
        if not found:
            raise NoCompilerError(f"{executable} does not say its version; `{executable} --version` printed {said!r}")
        return cls(executable, found[1], found[2])

    def inputs(self, mlir: str) -> tuple[str, ...]:
        """Everything that the vmfb of an MLIR module depends on."""
        return (self.version, self.revision, *FLAGS, mlir)


class Compilations:
    """Running compilers. Leaving the context kills those that still run, so that an interrupt is not held up by them."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Compilations:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def compile(self, mlir: str, name: str) -> bytes:
        """The vmfb of an MLIR module. May be called from several threads.

        The text goes in by stdin, so that the output is the same wherever it is made.
        Raises CompileError, with `name`, the lines at fault and what the compiler says about them, when it fails, dies or reports an error.
        """
        process = self._start()
        try:
            vmfb, said = process.communicate(mlir.encode())
        finally:
            process.kill()
            with self._lock:
                self._running.discard(process)
        stderr = said.decode(errors="replace")
        if process.returncode or diagnostics.has_errors(stderr):
            raise CompileError(f"{name} does not compile ({_outcome(process.returncode)}):\n\n{diagnostics.show(stderr, mlir)}")
        return vmfb

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise CompileError("compiling was stopped")
            process = subprocess.Popen(
                [self.compiler.executable, "-", "-o", "-", *FLAGS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C is for us; we end them
            )
            self._running.add(process)
            return process


def _outcome(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}: the compiler crashed" if name in ("SIGABRT", "SIGSEGV") else f"{name}: the compiler was killed; out of memory?"
