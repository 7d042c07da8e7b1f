"""What every op takes and returns, and the kernels that exist: op x format x variant, each with a text key that parses back.

A key is the name of the vmfb's function, the name in the manifest and what the command line takes: "mul_mat_vec.q4_k.3".
Every function takes flat tensors first, then its sizes as i32, then its outputs, which land in the caller's buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from iq.errors import FormatError, KernelKeyError, ShapeError
from iq.formats import FORMATS, Format, format_of
from iq.targets import Target

# Columns (rows of activations) that mul_mat_vec has kernels for; more take mul_mat (candle's rule).
MAX_VEC_COLUMNS = 8

# Element types that dequantize and get_rows write.
DTYPES = ("f32", "f16", "bf16")

_ITEMSIZES = {"f32": 4, "f16": 2, "bf16": 2, "i32": 4}


@dataclass(frozen=True)
class Tensor:
    """A flat tensor argument: name, and element type as MLIR spells it. The type "variant" stands for the kernel's variant.

    dims: the sizes whose product counts its elements, or what is `bytes` long each; "k" is the blocks' weights where it is no size itself.
    bytes: 0 for elements, or "block" for the format's.
    """

    name: str
    dtype: str
    dims: tuple[str, ...]
    bytes: int | str = 0


@dataclass(frozen=True)
class Scratch:
    """A buffer between two dispatches: `bytes` for each of the things that the product of `dims` counts."""

    dims: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Stage:
    """One dispatch: the kernel, what it reads and writes, its push constants and its grid.

    The grid has ceil(size / tile) workgroups along x and y; the tiles' sizes are set per target in compile/tuning.py.
    family: the template (templates/ops/<family>.mlir.j2) where several kernels share one; else it is named after the kernel.
    """

    kernel: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sizes: tuple[str, ...]
    grid: tuple[tuple[str, str], ...]
    family: str = ""

    @property
    def template(self) -> str:
        return f"ops/{self.family or self.kernel}.mlir.j2"


@dataclass(frozen=True)
class Op:
    """One op: its public arguments, its variants, and the dispatches it is made of.

    inputs, sizes, outputs: the function's arguments, in this order.
    variants: of quantized formats; plain_variants: of f32, f16 and bf16.
    stages: the dispatches, by variant ("" is any). tiled: the same where the target has tile kernels and the format is quantized.
    """

    name: str
    inputs: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    variants: tuple[str, ...]
    plain_variants: tuple[str, ...]
    stages: dict[str, tuple[Stage, ...]]
    tiled: dict[str, tuple[Stage, ...]] = field(default_factory=dict)
    activations: bool = False  # works on q8_1, the activations' own format, rather than on weights


# Buffers between dispatches. `spans` are the 32-value q8 blocks of one row of activations.
SCRATCH: dict[str, Scratch] = {
    "xq": Scratch(("columns", "spans"), 32),  # int8 values
    "xd": Scratch(("columns", "spans"), 8),  # f32 scale; the sums of the first and last 16 int8 values: first + 65536 * last
    "xh": Scratch(("columns", "k"), 2),  # f16 values of a row divided by the row's scale
    "xscale": Scratch(("columns",), 4),  # f32, a power of two
}

_Q8_SIZES, _Q8_GRID = ("columns", "k", "spans"), (("spans", "span_tile"), ("columns", "one"))
_QUANTIZE = Stage("quantize_q8_1_soa", ("x",), ("xq", "xd"), _Q8_SIZES, _Q8_GRID, "quantize_q8_1")
_QUANTIZE_GGML = Stage("quantize_q8_1", ("x",), ("y",), _Q8_SIZES, _Q8_GRID)
_SCALE_ROWS = Stage("scale_rows", ("x",), ("xh", "xscale"), ("columns", "k"), (("columns", "one"),))
_VEC_GRID = (("rows", "row_tile"), ("columns", "column_tile"))
_VEC = Stage("mul_mat_vec", ("w", "xq", "xd"), ("y",), ("columns", "rows", "blocks"), _VEC_GRID)
_DEQUANTIZE_VEC = Stage("dequantize_mul_mat_vec", ("w", "x"), ("y",), ("columns", "rows", "blocks"), _VEC_GRID)
_MUL_MAT_Q8_1 = Stage("mul_mat_q8_1", ("w", "xq", "xd"), ("y",), ("columns", "rows", "blocks"), _VEC_GRID)
_MUL_MAT_FLOAT = Stage("mul_mat_float", ("w", "xh", "xscale"), ("y",), ("columns", "rows", "blocks"), _VEC_GRID)
_DEQUANTIZE = Stage("dequantize", ("w",), ("y",), ("blocks",), (("blocks", "block_tile"),))
_GET_ROWS = Stage("get_rows", ("w", "ids"), ("y",), ("rows", "blocks"), (("rows", "one"), ("blocks", "block_tile")))

_W, _X, _Y = Tensor("w", "i8", ("rows", "blocks"), "block"), Tensor("x", "f32", ("columns", "k")), Tensor("y", "f32", ("columns", "rows"))
_XQ, _XD = (Tensor(name, "i8", SCRATCH[name].dims, SCRATCH[name].bytes) for name in ("xq", "xd"))
# Weights of which the sizes do not tell the rows: all blocks in one, or at least a row for ids to name.
_BLOCKS = Tensor("w", "i8", ("blocks",), "block")
_COLUMNS = tuple(str(n) for n in range(1, MAX_VEC_COLUMNS + 1))
_MATRIX_SIZES = ("columns", "rows", "blocks")

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("dequantize", (_BLOCKS,), ("blocks",), (Tensor("y", "variant", ("k",)),), DTYPES, DTYPES, {"": (_DEQUANTIZE,)}),
        Op(
            "get_rows",
            (_BLOCKS, Tensor("ids", "i32", ("rows",))),
            ("rows", "blocks"),
            (Tensor("y", "variant", ("rows", "k")),),
            DTYPES,
            DTYPES,
            {"": (_GET_ROWS,)},
        ),
        Op("mul_mat_vec", (_W, _X), _MATRIX_SIZES, (_Y,), _COLUMNS, (), {"": (_QUANTIZE, _VEC)}),
        Op("dequantize_mul_mat_vec", (_W, _X), _MATRIX_SIZES, (_Y,), _COLUMNS, _COLUMNS, {"": (_DEQUANTIZE_VEC,)}),
        Op(
            "mul_mat",
            (_W, _X),
            _MATRIX_SIZES,
            (_Y,),
            ("q8_1", "float"),
            ("float",),
            stages={"q8_1": (_QUANTIZE, _VEC), "float": (_DEQUANTIZE_VEC,)},
            tiled={"q8_1": (_QUANTIZE, _MUL_MAT_Q8_1), "float": (_SCALE_ROWS, _MUL_MAT_FLOAT)},
        ),
        # The activations' own formats: GGML's 36-byte blocks, rows padded to `spans` blocks; and the structure of arrays used inside.
        Op(
            "quantize_q8_1",
            (_X,),
            _Q8_SIZES,
            (Tensor("y", "i8", ("columns", "spans"), "block"),),
            ("f32",),
            (),
            {"": (_QUANTIZE_GGML,)},
            activations=True,
        ),
        Op("quantize_q8_1_soa", (_X,), _Q8_SIZES, (_XQ, _XD), ("f32",), (), {"": (_QUANTIZE,)}, activations=True),
    )
}


@dataclass(frozen=True)
class KernelSpec:
    """One kernel: op x format x variant. `key` and `parse` are inverse."""

    op: str
    format: str
    variant: str

    @property
    def key(self) -> str:
        return f"{self.op}.{self.format}.{self.variant}"

    @classmethod
    def parse(cls, key: str) -> KernelSpec:
        """The kernel of a key. Raises KernelKeyError for a key that names no kernel."""
        parts = key.split(".")
        spec = cls(*parts) if len(parts) == 3 else None
        if spec is None or spec not in set(kernels()):
            raise KernelKeyError(
                f"{key!r} names no kernel; a key is OP.FORMAT.VARIANT, as in mul_mat_vec.q4_k.1; `iq ls --kernels` lists all"
            )
        return spec

    @property
    def definition(self) -> Op:
        return OPS[self.op]

    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs, their element types resolved."""
        return tuple(replace(t, dtype=self._dtype(t)) for t in self.definition.outputs)

    def nbytes(self, tensor: Tensor, sizes: Mapping[str, int]) -> int:
        """Bytes that the kernel reads or writes of one of its tensors, at the most, for given sizes."""
        fmt = FORMATS[self.format]
        known = {"k": sizes.get("blocks", 0) * fmt.weights(), **sizes}
        each = fmt.bytes() if tensor.bytes == "block" else int(tensor.bytes) or _ITEMSIZES[self._dtype(tensor)]
        return each * math.prod(known[dim] for dim in tensor.dims)

    def _dtype(self, tensor: Tensor) -> str:
        return self.variant if tensor.dtype == "variant" else tensor.dtype

    def stages(self, target: Target) -> tuple[Stage, ...]:
        """The dispatches of this kernel on a target."""
        op = self.definition
        tiled = op.tiled if target.matrix and FORMATS[self.format].quantized else op.stages
        table = tiled or op.stages
        return table.get(self.variant) or table[""]


def kernels() -> Iterator[KernelSpec]:
    """Every kernel there is, in the order of OPS and FORMATS."""
    for op in OPS.values():
        for fmt in FORMATS.values():
            for variant in variants_of(op, fmt):
                yield KernelSpec(op.name, fmt.name, variant)


def variants_of(op: Op, fmt: type[Format]) -> tuple[str, ...]:
    """The variants that an op has for a format; none where it does not apply."""
    if fmt.activations or op.activations:
        return op.variants if fmt.activations and op.activations else ()
    return op.variants if fmt.quantized else op.plain_variants


def choose_mul_mat(fmt: type[Format], target: Target, columns: int, via: str | None) -> KernelSpec:
    """The kernel that multiplies `columns` rows of activations with a weight.

    via: "q8_1" quantizes the activations to q8_1, "float" keeps them; None takes the default: q8_1 for up to 8 columns (as candle and
    llama.cpp do) and wherever the target has no matrix cores, else float. Plain formats only have "float".
    Raises FormatError for a `via` that the format does not have, ShapeError for no columns.
    """
    if via not in (None, "q8_1", "float"):
        raise FormatError(f"via={via!r}: expected 'q8_1', 'float' or None")
    if via == "q8_1" and not fmt.quantized:
        raise FormatError(f"{fmt.name} weights are not quantized: via='q8_1' does not apply; use via='float'")
    if columns < 1:
        raise ShapeError(f"no kernel multiplies {columns} columns")
    vec = columns <= MAX_VEC_COLUMNS
    if via is None:
        via = "q8_1" if fmt.quantized and (vec or not target.matrix_cores) else "float"
    if vec:
        return KernelSpec("mul_mat_vec" if via == "q8_1" else "dequantize_mul_mat_vec", fmt.name, str(columns))
    return KernelSpec("mul_mat", fmt.name, via)


def select(formats: str | None = None, ops: str | None = None) -> list[KernelSpec]:
    """The kernels of the named formats and ops (comma-separated; None is all). Raises FormatError or KernelKeyError on an unknown name."""
    wanted = {format_of(f.strip()).name for f in formats.split(",")} if formats else set(FORMATS)
    names = {o.strip() for o in ops.split(",")} if ops else set(OPS)
    if unknown := names - set(OPS):
        raise KernelKeyError(f"unknown op {', '.join(sorted(unknown))}; known: {', '.join(OPS)}")
    return [k for k in kernels() if k.format in wanted and k.op in names]
