"""The ops and their kernels, as data: what each takes and returns, and the kernels that it is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from iq.formats import Format
from iq.kernels import quantize_schedules, schedules
from iq.kernels.kernel import Axis, Kernel, Schedules, Tensor
from iq.targets import Target

# Element types that dequantize and get_rows write.
DTYPES = ("f32", "f16", "bf16")

_W, _X, _Y = Tensor("w", "i8", ("n", "row_bytes")), Tensor("x", "f32", ("m", "k")), Tensor("y", "f32", ("m", "n"))
_W_BLOCKS, _VALUES = Tensor("w", "i8", ("row_bytes",)), Tensor("y", "", ("k",))
_IDS, _ROWS = Tensor("ids", "i32", ("rows",)), Tensor("y", "", ("rows", "k"))
# What is quantized, and into what.
_UNPACKED, _IMATRIX = Tensor("x", "f32", ("rows", "k")), Tensor("imatrix", "f32", ("k",))
_PACKED = Tensor("w", "i8", ("rows", "row_bytes"))
_Q8_1 = Tensor("y", "i8", ("m", "q8_blocks", 36))  # GGML's blocks
# The activations between two kernels, as q8: int8 values; for each 32 of them the f32 scale and the sums of the first and last 16 values
# (first + 65536 * last). Or as f16, each row divided by a power of two.
_XQ, _XD = Tensor("xq", "i8", ("m", "q8_blocks", 32)), Tensor("xd", "i8", ("m", "q8_blocks", 8))
_XH, _XSCALE = Tensor("xh", "f16", ("m", "k")), Tensor("xscale", "f32", ("m", 1))

# The same in tiles, as a wave's lanes need them for a tile of weights each (iq/templates/kernels/mul_mat_vec_tiles.mlir.j2).
_XQ_TILES = Tensor("xq", "i8", ("m_tiles", "k_tiles", "tile_m", "tile_k"))
_XD_TILES = Tensor("xd", "i8", ("m_tiles", "k_tiles", "tile_m", "tile_sums", 8))

# Products with experts. A token picks experts, whose numbers are in ids; a row of activations has `share` picks, which follow one another.
_EXPERTS, _PICKED = Tensor("w", "i8", ("experts", "n", "row_bytes")), Tensor("ids", "i32", ("picks",))
_Y_PICKS = Tensor("y", "f32", ("picks", "n"))
# The picks grouped by expert, each with its row of activations; and tiles of them: the expert, the first place in the order, the one after
# the last, and 0.
_ORDER, _GROUPS = Tensor("order", "i32", ("picks", 2)), Tensor("groups", "i32", ("pick_tiles", 4))

_PRODUCT_SIZES = ("m", "n", "blocks")
_ID_SIZES = ("m", "share", "picks", "experts", "n", "blocks")
_BLOCKS = Axis("blocks", "block_tile")
_Q8_SIZES = ("m", "k", "q8_blocks")
_Q8_GRID = (Axis("q8_blocks", "q8_tile"), Axis("m"))


def _product(name: str, reads: tuple[Tensor, ...], schedules: Schedules, model: str, unit: str) -> Kernel:
    return Kernel(name, (_W, *reads), (_Y,), _PRODUCT_SIZES, (Axis("n", "tile_n"), Axis("m", "tile_m")), schedules, model, unit)


DEQUANTIZE = Kernel("dequantize", (_W_BLOCKS,), (_VALUES,), ("blocks",), (_BLOCKS,), schedules.element, model="dequantized")
GET_ROWS = Kernel(
    "get_rows",
    reads=(_W_BLOCKS, _IDS),
    writes=(_ROWS,),
    sizes=("rows", "blocks"),
    grid=(Axis("rows"), _BLOCKS),
    schedules=schedules.element,
    model="dequantized rows",
)
QUANTIZE, QUANTIZE_IMATRIX, SET_ROWS = (
    Kernel(name, reads, (writes,), ("rows", "blocks"), (Axis("rows"), _BLOCKS), layouts, name, family="quantize")
    for name, reads, writes, layouts in (
        ("quantize", (_UNPACKED,), _PACKED, quantize_schedules.quantize),
        ("quantize_imatrix", (_UNPACKED, _IMATRIX), _PACKED, quantize_schedules.quantize_imatrix),
        ("set_rows", (_UNPACKED, _IDS), _W_BLOCKS, quantize_schedules.set_rows),
    )
)
HADAMARD = Kernel(
    "hadamard",
    reads=(_X,),
    writes=(Tensor("y", "f32", ("m", "k")),),
    sizes=("m", "k", "width"),
    grid=(Axis("m"), Axis("k", "block_weights")),
    schedules=quantize_schedules.hadamard,
    model="hadamard",
)
QUANTIZE_Q8_1 = Kernel("quantize_q8_1", (_X,), (_Q8_1,), _Q8_SIZES, _Q8_GRID, schedules.quantize_q8_1, model="q8_1 blocks")
QUANTIZE_Q8_1_SOA = Kernel(
    "quantize_q8_1_soa", (_X,), (_XQ, _XD), _Q8_SIZES, _Q8_GRID, schedules.quantize_q8_1, model="q8 arrays", family="quantize_q8_1"
)
QUANTIZE_Q8_1_TILES = Kernel(
    "quantize_q8_1_tiles", (_X,), (_XQ_TILES, _XD_TILES), _Q8_SIZES, _Q8_GRID, schedules.quantize_q8_1_tiles, family="quantize_q8_1"
)
SCALE_ROWS = Kernel("scale_rows", (_X,), (_XH, _XSCALE), ("m", "k"), (Axis("m"),), schedules.scale_rows)
MUL_MAT_VEC = _product("mul_mat_vec", (_XQ, _XD), schedules.mul_mat_vec, "product of q8_1", "dot")
MUL_MAT_VEC_TILES = _product("mul_mat_vec_tiles", (_XQ_TILES, _XD_TILES), schedules.mul_mat_vec_tiles, "product of q8_1", "dot")
DEQUANTIZE_MUL_MAT_VEC = _product("dequantize_mul_mat_vec", (_X,), schedules.dequantize_mul_mat_vec, "product of f32", "vector")
MUL_MAT_Q8_1 = _product("mul_mat_q8_1", (_XQ, _XD), schedules.mul_mat_q8_1, "product of q8_1", "dot")
MUL_MAT_FLOAT = _product("mul_mat_float", (_XH, _XSCALE), schedules.mul_mat_float, "product of f16", "matrix")


def _of_picks(dense: Kernel, name: str) -> Kernel:
    """A matvec as it is run for each pick, with the expert's matrix."""
    return replace(
        dense,
        name=name,
        family=dense.name,
        reads=(_EXPERTS, *dense.reads[1:], _PICKED),
        writes=(_Y_PICKS,),
        sizes=("m", "share", "n", "blocks"),
        grid=(Axis("n", "tile_n"), Axis("m"), Axis("share")),
        schedules=schedules.for_picks(dense.schedules),
        model=f"picked {dense.model}",
    )


def _grouped(dense: Kernel, schedules: Schedules) -> Kernel:
    """A product with the matrix of each expert, over tiles of picks that share one."""
    return replace(
        dense,
        name=f"grouped_{dense.name}",
        family=dense.name,
        reads=(_EXPERTS, *dense.reads[1:], _ORDER, _GROUPS),
        writes=(_Y_PICKS,),
        sizes=("m", "picks", "pick_tiles", "n", "blocks"),
        grid=(Axis("n", "tile_n"), Axis("pick_tiles")),
        schedules=schedules,
        model=f"picked {dense.model}",
    )


GROUP_PICKS = Kernel(
    "group_picks",
    reads=(_PICKED,),
    writes=(_ORDER, _GROUPS),
    sizes=("share", "picks", "pick_tiles", "experts"),
    grid=(Axis("experts", "most_experts"),),  # one workgroup
    schedules=schedules.group_picks,
)
MUL_MAT_VEC_ID = _of_picks(MUL_MAT_VEC, "mul_mat_vec_id")
MUL_MAT_VEC_ID_TILES = _of_picks(MUL_MAT_VEC_TILES, "mul_mat_vec_id_tiles")
DEQUANTIZE_MUL_MAT_VEC_ID = _of_picks(DEQUANTIZE_MUL_MAT_VEC, "dequantize_mul_mat_vec_id")
GROUPED_MUL_MAT_VEC = _grouped(MUL_MAT_VEC, schedules.mul_mat_vec)
GROUPED_DEQUANTIZE_MUL_MAT_VEC = _grouped(DEQUANTIZE_MUL_MAT_VEC, schedules.dequantize_mul_mat_vec)
GROUPED_MUL_MAT_Q8_1 = _grouped(MUL_MAT_Q8_1, schedules.mul_mat_q8_1)
GROUPED_MUL_MAT_FLOAT = _grouped(MUL_MAT_FLOAT, schedules.grouped_mul_mat_float)

_WEIGHTS = frozenset({"weights", "plain"})
_QUANTIZED = frozenset({"weights"})
_PLAIN = frozenset({"plain"})
_ACTIVATIONS = frozenset({"activations"})


@dataclass(frozen=True)
class Variant:
    """Variants of an op that are made of the same kernels.

    values: what tells them apart (see Op.varies). kinds: of the formats that have them (Format.kind). plans: the kernels to run one after
    another; where there are several plans, the first runs whose kernels all exist for the target and the format.
    """

    values: tuple[str, ...]
    kinds: frozenset[str]
    plans: tuple[tuple[Kernel, ...], ...]


@dataclass(frozen=True)
class Op:
    """One op.

    inputs, sizes, outputs: the arguments of its functions, in this order. varies: what its variants differ in: the rows of activations
    that they are for ("columns"), what the activations become ("via"), or the element type of the numbers that are read or written
    ("dtype").
    only: the one format that it is for; "" where variants say which.
    """

    name: str
    inputs: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    varies: Literal["columns", "via", "dtype"]
    variants: tuple[Variant, ...]
    only: str = ""

    def values(self, fmt: type[Format]) -> tuple[str, ...]:
        """The variants that there are for a format; none where the op does not apply."""
        if self.only not in ("", fmt.name):
            return ()
        return tuple(value for variant in self.variants if fmt.kind in variant.kinds for value in variant.values)

    def kernels(self, value: str, target: Target, fmt: type[Format]) -> tuple[Kernel, ...]:
        """The kernels of a variant on a target; none where the format has no such op."""
        [variant] = [v for v in self.variants if value in v.values and fmt.kind in v.kinds]
        return next((plan for plan in variant.plans if all(kernel.schedules(target, fmt, 0) for kernel in plan)), ())


# Those of them that a target has are in schedules.VEC_COLUMNS.
_COLUMNS = tuple(str(m) for m in range(1, schedules.MOST_VEC_COLUMNS + 1))
OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("dequantize", (_W_BLOCKS,), ("blocks",), (_VALUES,), "dtype", (Variant(DTYPES, _WEIGHTS, ((DEQUANTIZE,),)),)),
        Op("get_rows", (_W_BLOCKS, _IDS), ("rows", "blocks"), (_ROWS,), "dtype", (Variant(DTYPES, _WEIGHTS, ((GET_ROWS,),)),)),
        Op(
            "mul_mat_vec",
            (_W, _X),
            _PRODUCT_SIZES,
            (_Y,),
            "columns",
            (Variant(_COLUMNS, _QUANTIZED, ((QUANTIZE_Q8_1_TILES, MUL_MAT_VEC_TILES), (QUANTIZE_Q8_1_SOA, MUL_MAT_VEC))),),
        ),
        Op(
            "dequantize_mul_mat_vec",
            (_W, _X),
            _PRODUCT_SIZES,
            (_Y,),
            "columns",
            (Variant(_COLUMNS, _WEIGHTS, ((DEQUANTIZE_MUL_MAT_VEC,),)),),
        ),
        Op(
            "mul_mat",
            (_W, _X),
            _PRODUCT_SIZES,
            (_Y,),
            "via",
            (
                Variant(("q8_1",), _QUANTIZED, ((QUANTIZE_Q8_1_SOA, MUL_MAT_Q8_1), (QUANTIZE_Q8_1_SOA, MUL_MAT_VEC))),
                Variant(("float",), _WEIGHTS, ((SCALE_ROWS, MUL_MAT_FLOAT), (DEQUANTIZE_MUL_MAT_VEC,))),
            ),
        ),
        *(
            Op(kernel.name, kernel.reads, kernel.sizes, kernel.writes, "dtype", (Variant(("f32",), _WEIGHTS, ((kernel,),)),))
            for kernel in (QUANTIZE, QUANTIZE_IMATRIX, SET_ROWS)
        ),
        Op(
            "mul_mat_vec_id",
            (_EXPERTS, _X, _PICKED),
            _ID_SIZES,
            (_Y_PICKS,),
            "via",
            (
                Variant(("q8_1",), _QUANTIZED, ((QUANTIZE_Q8_1_TILES, MUL_MAT_VEC_ID_TILES), (QUANTIZE_Q8_1_SOA, MUL_MAT_VEC_ID))),
                Variant(("float",), _WEIGHTS, ((DEQUANTIZE_MUL_MAT_VEC_ID,),)),
            ),
        ),
        Op(
            "mul_mat_id",
            (_EXPERTS, _X, _PICKED),
            _ID_SIZES,
            (_Y_PICKS,),
            "via",
            (
                Variant(
                    ("q8_1",),
                    _QUANTIZED,
                    ((QUANTIZE_Q8_1_SOA, GROUP_PICKS, GROUPED_MUL_MAT_Q8_1), (QUANTIZE_Q8_1_SOA, GROUP_PICKS, GROUPED_MUL_MAT_VEC)),
                ),
                Variant(
                    ("float",),
                    _WEIGHTS,
                    ((SCALE_ROWS, GROUP_PICKS, GROUPED_MUL_MAT_FLOAT), (GROUP_PICKS, GROUPED_DEQUANTIZE_MUL_MAT_VEC)),
                ),
            ),
        ),
        Op("hadamard", HADAMARD.reads, HADAMARD.sizes, HADAMARD.writes, "dtype", (Variant(("f32",), _PLAIN, ((HADAMARD,),)),), "f32"),
        Op("quantize_q8_1", (_X,), _Q8_SIZES, (_Q8_1,), "dtype", (Variant(("f32",), _ACTIVATIONS, ((QUANTIZE_Q8_1,),)),), "q8_1"),
        Op("quantize_q8_1_soa", (_X,), _Q8_SIZES, (_XQ, _XD), "dtype", (Variant(("f32",), _ACTIVATIONS, ((QUANTIZE_Q8_1_SOA,),)),), "q8_1"),
    )
}
