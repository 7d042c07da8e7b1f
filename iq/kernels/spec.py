"""Which kernels exist, each with a text key that parses back: "mul_mat_vec.q4_k.1", "dequantize.q6_k.f16", "mul_mat_vec.q4_k.1.split_k2".

A key names a function of a vmfb, a kernel in a manifest, and what the command line takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from iq.errors import KernelKeyError
from iq.formats import FORMATS, format_of
from iq.kernels.kernel import Tensor, all_sizes
from iq.kernels.ops import OPS, Op
from iq.targets import TARGETS, Target


@dataclass(frozen=True)
class KernelSpec:
    """One kernel: OP.FORMAT.VARIANT, and .SCHEDULE where it is not the op's default one. `key` and `parse` are inverse.

    The variant is one of: columns, the largest M that it is for; via, what the activations become ("q8_1", "float"); dtype, the element
    type of the numbers that it reads or writes. Which one is the op's own (Op.varies).
    """

    op: str
    format: str
    columns: int | None = None
    via: str | None = None
    dtype: str | None = None
    schedule: str = ""

    @property
    def variant(self) -> str:
        """The variant as the key spells it."""
        return str(getattr(self, self.definition.varies))

    @property
    def key(self) -> str:
        return ".".join(part for part in (self.op, self.format, self.variant, self.schedule) if part)

    @property
    def definition(self) -> Op:
        return OPS[self.op]

    def nbytes(self, tensor: Tensor, sizes: Mapping[str, int]) -> int:
        """Bytes of one of the op's tensors for these sizes: what the kernel may read or write of it."""
        return tensor.nbytes(all_sizes(FORMATS[self.format], sizes), self.dtype or "")

    @classmethod
    def read(cls, key: str) -> KernelSpec:
        """The kernel that a key names, whether or not this version of iq has it. Raises KernelKeyError for text that is no key."""
        parts = key.split(".")
        if len(parts) not in (3, 4) or not all(parts) or parts[0] not in OPS:
            raise KernelKeyError(f"{key!r} names no kernel; a key is OP.FORMAT.VARIANT[.SCHEDULE], as in mul_mat_vec.q4_k.1")
        return cls.of(*parts)

    @classmethod
    def of(cls, op: str, format: str, variant: str, schedule: str = "") -> KernelSpec:
        """The kernel of an op with its variant as text. Raises KernelKeyError for a variant that is no number where one is meant."""
        match OPS[op].varies:
            case "columns":
                if not (variant.isascii() and variant.isdecimal() and len(variant) < 10):
                    raise KernelKeyError(f"{op} has kernels for a number of columns, not for {variant[:20]!r}")
                return cls(op, format, columns=int(variant), schedule=schedule)
            case "via":
                return cls(op, format, via=variant, schedule=schedule)
            case "dtype":
                return cls(op, format, dtype=variant, schedule=schedule)

    @classmethod
    def parse(cls, key: str) -> KernelSpec:
        """The kernel of a key. Raises KernelKeyError for a key that names no kernel of any target."""
        spec = cls.read(key)
        # Most are every target's: the kernels of all targets are listed for the others only.
        if spec.key != key or not any(spec.exists(target) for target in TARGETS.values()):
            raise KernelKeyError(f"{key!r} names no kernel; `iq ls --kernels` lists all")
        return spec

    def exists(self, target: Target) -> bool:
        """Whether the target has this kernel: targets differ in schedules and in the columns of their matvecs."""
        return self in _kernels(target)


def kernels(target: Target | None = None) -> tuple[KernelSpec, ...]:
    """Every kernel of a target, or of any target, in the order of OPS and FORMATS."""
    return tuple(_all() if target is None else _kernels(target))


@cache
def _all() -> dict[KernelSpec, None]:
    found = {spec for target in TARGETS.values() for spec in _kernels(target)}
    return dict.fromkeys(sorted(found, key=_order))


def _order(spec: KernelSpec) -> tuple[int, int, int, str]:
    variants = spec.definition.values(FORMATS[spec.format])
    return list(OPS).index(spec.op), list(FORMATS).index(spec.format), variants.index(spec.variant), spec.schedule


@cache
def _kernels(target: Target) -> dict[KernelSpec, None]:
    return dict.fromkeys(_of(target))


def _of(target: Target) -> Iterator[KernelSpec]:
    for op in OPS.values():
        for fmt in FORMATS.values():
            for value in op.values(fmt):
                spec = KernelSpec.of(op.name, fmt.name, value)
                for last in op.kernels(value, target, fmt)[-1:]:
                    for schedule in last.schedules(target, fmt, spec.columns or 0):
                        # Only kernels for a number of columns are asked for by schedule.
                        if spec.columns or not schedule.key:
                            yield KernelSpec.of(op.name, fmt.name, value, schedule.key)


def select(formats: str | None = None, ops: str | None = None, target: Target | None = None) -> list[KernelSpec]:
    """The kernels of the named formats and ops (comma-separated; None is all). Raises FormatError or KernelKeyError on an unknown name."""
    wanted = {format_of(f.strip()).name for f in formats.split(",")} if formats else set(FORMATS)
    names = {o.strip() for o in ops.split(",")} if ops else set(OPS)
    if unknown := names - set(OPS):
        raise KernelKeyError(f"unknown op {', '.join(sorted(unknown))}; known: {', '.join(OPS)}")
    return [k for k in kernels(target) if k.format in wanted and k.op in names]
