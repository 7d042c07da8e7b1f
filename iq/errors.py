"""Every refusal of iq, typed. Each message names what was given, what is allowed and what to do.

All inherit from `IqError`; where Python has a fitting built-in (ValueError, TypeError, IndexError), they inherit from it too.
"""


class IqError(Exception):
    """Base of everything iq refuses."""


class FormatError(IqError, ValueError):
    """A format name that is unknown, or an op that the format does not have."""


class ShapeError(IqError, ValueError):
    """A shape that does not fit: ranks, inner dimensions, a row length that is no multiple of the block, a wrong byte count."""


class DtypeError(IqError, TypeError):
    """An element type that the op does not take."""


class LayoutError(IqError, ValueError):
    """An array or buffer whose memory layout cannot cross into IREE: not C-contiguous, or misaligned."""


class RowIndexError(IqError, IndexError):
    """A row or expert id outside the tensor."""


class DeviceError(IqError, RuntimeError):
    """A device or driver that cannot be had; lists where it was looked for."""


class TargetError(IqError, ValueError):
    """A target id that is unknown or cannot be parsed."""


class KernelKeyError(IqError, ValueError):
    """A kernel key that does not parse or names no kernel."""


class GGUFError(IqError, ValueError):
    """A GGUF file that is truncated, malformed, or lacks the tensor asked for; or one that cannot be written."""


class BundleError(IqError, RuntimeError):
    """Base of what a bundle on disk can be refused for."""


class ManifestError(BundleError):
    """The manifest is missing, does not parse, or has a schema number this version does not know."""


class MissingFileError(BundleError):
    """A file that the manifest lists is not there."""


class UnknownFileError(BundleError):
    """A file lies in the bundle that the manifest does not list."""


class AlteredFileError(BundleError):
    """A file's size or sha256 differs from the manifest."""


class BytecodeError(BundleError):
    """The vmfb's bytecode version, or its executable format, is not one the installed runtime can load."""


class NoArtifactError(BundleError):
    """No artifact fits the device: wrong processor or feature. Says what the device is, what there is, and what to do."""


class NoKernelError(BundleError):
    """The bundle fits the device but does not hold the kernel asked for."""


class CompileError(IqError, RuntimeError):
    """A kernel did not compile: names it, and shows the numbered MLIR lines with the compiler's diagnostic."""


class NoCompilerError(CompileError):
    """A kernel has to be compiled but the compiler is not installed, or compiling is disabled (IQ_DISABLE_COMPILE)."""
