"""A bundle on disk: one target's vmfbs and a manifest with their digests, in a directory or in one STORED zip.

`write` makes a bundle, `Bundle.open` checks one, `Bundles` finds the one that a device may run. What is inside a vmfb is read by
`iq.bundle.vmfb`, what is inside a ROCm executable by `iq.bundle.codeobject`. All of it does without the compiler.
"""

from iq.bundle.executable import Executable
from iq.bundle.launches import Launches, launches_of
from iq.bundle.manifest import MANIFEST, Compiler, Kernel, Manifest, file_of
from iq.bundle.matching import Bundles, best_match
from iq.bundle.module import Module
from iq.bundle.reading import BYTECODE, Bundle, find, read_manifest
from iq.bundle.vmfb import BytecodeVersion, Vmfb
from iq.bundle.writing import Compiled, pack, write

__all__ = [
    "BYTECODE", "MANIFEST", "Bundle", "Bundles", "BytecodeVersion", "Compiled", "Compiler", "Executable", "Kernel", "Launches",
    "Manifest", "Module", "Vmfb", "best_match", "file_of", "find", "launches_of", "pack", "read_manifest", "write",
]  # fmt: skip
