"""What the tests of formats share: which formats there are of each kind, weights at the edges of float32, and probes that find out from
`dequantize` what the bytes of a block are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import libgguf
import numpy as np
from numpy.typing import NDArray

from iq.formats import FORMATS, Format, dequantize

QUANTIZED = [name for name, form in FORMATS.items() if form.kind != "plain"]
WEIGHTS = [name for name, form in FORMATS.items() if form.kind == "weights"]
# Of these, what a byte does to a weight tells what is declared of it: the quants stand for themselves, in bits of their own. Those of tq1_0
# are digits of base 3, and q1_0's bit stands for 0 or 2.
DIRECT = [name for name in QUANTIZED if not (FORMATS[name].codebook or FORMATS[name].tables() or name in ("tq1_0", "q1_0"))]
PLAIN = [name for name, form in FORMATS.items() if form.kind == "plain"]
SUPER_BLOCKS = [name for name in WEIGHTS if FORMATS[name].block_size == 256]
USE_IMATRIX = [name for name in WEIGHTS if FORMATS[name].imatrix != "ignored"]


def gguf_py_can(call: Callable[..., Any], form: type[Format]) -> bool:
    """Whether gguf.quants.quantize or .dequantize, given as `call`, knows the format."""
    if ggml_type(form) is None:
        return False
    try:
        call(np.zeros(form.type_size * form.block_size, np.float32 if call is gguf.quants.quantize else np.uint8), ggml_type(form))
    except NotImplementedError:
        return False
    return True


def ggml_type(form: type[Format]) -> gguf.GGMLQuantizationType | None:
    """gguf-py's name of the format, if it has one."""
    return next((type for type in gguf.GGMLQuantizationType if type == form.type), None)


GGUF_PY_QUANTIZES = [name for name, form in FORMATS.items() if gguf_py_can(gguf.quants.quantize, form)]
GGUF_PY_DEQUANTIZES = [name for name, form in FORMATS.items() if gguf_py_can(gguf.quants.dequantize, form)]
LIBGGUF = [name for name in WEIGHTS if libgguf.row_size(FORMATS[name].type, FORMATS[name].block_size)]


def needed_imatrix(form: type[Format], k: int) -> NDArray[np.float32] | None:
    """Equal importances for the formats that cannot be made without."""
    return np.ones(k, np.float32) if form.imatrix == "required" else None


def normal(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_same_bits(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Every float32 has the same bits; NaNs need only both be NaN."""
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    same = (actual.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(actual) & np.isnan(expected))
    assert same.all(), f"{np.count_nonzero(~same)} differ, first at {np.argwhere(~same)[0]}"


def extremes() -> NDArray[np.float32]:
    """Rows of 1024 at the edges of float32 and of ggml's searches, made of integers and powers of two: the same everywhere."""
    draw = np.random.RandomState(7)  # its stream is frozen
    whole = draw.randint(-(2**20), 2**20, (8, 1024)).astype(np.float32)
    spans = np.repeat(draw.randint(-70, 0, (8, 32)), 32, axis=1)
    rows = [
        np.ldexp(whole, spans),  # spans of very different sizes: scales round to 0
        np.ldexp(whole, spans // 4 - 20),  # f16 scales underflow
        np.ldexp(whole, np.arange(8)[:, None] + 1),  # f16 scales overflow
        np.ldexp(whole, -77),  # less than counts as zero
        np.ldexp(whole, -160),  # subnormal
        -1000 + np.ldexp(whole, draw.randint(-40, -20, (8, 1))),  # nearly constant: the range almost vanishes
        1000 + np.ldexp(whole, draw.randint(-40, -20, (8, 1))),
        np.round(whole / 2**17),  # ties
        (whole.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),  # bfloat16: quotients near ties (gguf-py before 0.18 errs)
        np.where(whole > 2**19, whole, -0.0),  # sparse, negative zeros
        np.full((1, 1024), -0.0),
        np.repeat(whole[:, ::32], 32, axis=1),  # constant spans
    ]
    return np.concatenate(rows).astype(np.float32)


def extreme_imatrix() -> NDArray[np.float32]:
    """Importances from 0 to 2^40; a block in which nothing matters."""
    draw = np.random.RandomState(34)  # a seed with which the last round of make_qp_quants still changes something
    imatrix = np.ldexp(draw.randint(0, 4, 1024), draw.randint(-40, 40, 1024)).astype(np.float32)
    imatrix[256:512] = 0
    return imatrix


def block_of(form: type[Format], scale: float, minimum: float) -> NDArray[np.uint8]:
    """A block of one byte throughout that makes all packed scales and mins positive, but for its own scale and min."""
    block = np.full((1, form.type_size), 0xBA if form.name == "q3_k" else 0x35, np.uint8)  # q3_K's scales count from 32
    form.set_scales(block, np.array([scale], np.float32), np.array([minimum], np.float32))
    return block[0]


def reach(form: type[Format], block: NDArray[np.uint8]) -> NDArray[np.float32]:
    """By how much each weight changes when a byte of the block is inverted: f32[type_size, block_size]."""
    inverted = block ^ (0xFF * np.eye(form.type_size, dtype=np.uint8))
    return dequantize(inverted, form.name) - dequantize(block, form.name)


def quant_bytes(form: type[Format]) -> NDArray[np.bool_]:
    """Which bytes of a block hold quants: those that change some weights, but not all of a sub-block."""
    with np.errstate(all="ignore"):
        changed = np.count_nonzero(reach(form, block_of(form, 1, 1)), axis=1)
    return (changed > 0) & (changed < form.sub_block)


def bits_of(form: type[Format]) -> int:
    """Bits of a quant."""
    bits, rest = divmod(8 * np.count_nonzero(quant_bytes(form)), form.block_size)
    assert rest == 0
    return int(bits)


def filled(form: type[Format], quants: int, scale: float, minimum: float) -> NDArray[np.float32]:
    """The weights of block_of(scale, minimum) with every byte of its quants set to `quants`."""
    block = block_of(form, scale, minimum)
    block[quant_bytes(form)] = quants
    return dequantize(block, form.name)
