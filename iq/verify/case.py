"""What a case of a kernel is, and what is measured of its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iq.formats import Format
from iq.verify.references import Array

# What outputs hold in every byte before a kernel runs: a number in every type, and never the right one.
UNWRITTEN = 0x7B


@dataclass(frozen=True)
class Check:
    """A measured error and what it may be."""

    measure: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Case:
    """One call of a kernel.

    name: what is special about it. inputs: arrays. sizes: by name. outputs: a shape and an element type each.
    check: measures what the outputs came to hold. operations: multiplications and additions of a product, else 0.
    """

    name: str
    inputs: tuple[Array, ...]
    sizes: dict[str, int]
    outputs: tuple[tuple[tuple[int, ...], str], ...]
    check: Callable[[Sequence[Array]], list[Check]]
    operations: int = 0


def row_length(fmt: type[Format], at_least: int) -> int:
    """A row length that kernels take: whole blocks, an odd number of them where that is no less than one."""
    blocks = -(-at_least // fmt.kernel_block_weights())
    return (blocks | 1) * fmt.kernel_block_weights()


def same_bytes(wants: tuple[Array, ...], outputs: Sequence[Array]) -> list[Check]:
    different = sum(int((got != want).sum()) for got, want in zip(outputs, wants, strict=True))
    return [Check("different bytes", different, 0)]
