"""quantize and dequantize against libgguf, which has ggml's own functions in its wheel: every format that both know."""

from __future__ import annotations

import libgguf
import numpy as np
import pytest
from format_samples import LIBGGUF, USE_IMATRIX, assert_same_bits, extreme_imatrix, extremes, normal
from numpy.typing import NDArray

from iq.formats import FORMATS, dequantize, quantize

K = 1024
# Of these libgguf 0.2.2 makes other bytes than ggml, whose golden data decide (tests/test_format_bytes.py): iq1_m's sums have other
# roundings in its older ggml, and of ways to split that are equally good another may be the best.
OTHER_BYTES = {"iq1_m"}

Rows = NDArray[np.float32]


def heavy_tailed() -> Rows:
    return np.random.default_rng(2).standard_cauchy((64, K)).astype(np.float32)


def sparse() -> Rows:
    """Mostly zeros, of either sign, so that signs of zeros come up in what is stored."""
    draw = np.random.default_rng(3)
    return np.where(draw.random((64, K)) < 0.9, np.copysign(np.float32(0), normal((64, K), 4)), normal((64, K), 5))


def one_sided() -> Rows:
    return np.concatenate([np.abs(sparse()), -np.abs(sparse()), 3 + normal((32, K), 6), normal((32, K), 7) - 3])


WEIGHTS = {
    "normal": lambda: normal((64, K)),
    "heavy-tailed": heavy_tailed,
    "sparse": sparse,
    "of one sign": one_sided,
    "at the edges of float32": extremes,
}
IMATRICES = {
    "even": lambda: np.ones(K, np.float32),
    "squares": lambda: np.square(normal((K,), 8)),
    "extreme": extreme_imatrix,
}


def same_blocks(name: str, weights: Rows, imatrix: Rows | None) -> None:
    form = FORMATS[name]
    expected = np.asarray(libgguf.quantize_rows(weights, form.type, imatrix=imatrix)).view(np.uint8)
    ours = quantize(weights, name, imatrix)
    different = (ours != expected.reshape(ours.shape)).reshape(-1, form.type_size).any(axis=1)
    assert not different.any(), f"{np.count_nonzero(different)} of {different.size} blocks, first {different.argmax()}"


@pytest.mark.parametrize("name", [name for name in LIBGGUF if name not in OTHER_BYTES and FORMATS[name].imatrix != "required"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_quantize(name: str, weights: str) -> None:
    same_blocks(name, WEIGHTS[weights](), None)


@pytest.mark.parametrize("name", [name for name in LIBGGUF if name not in OTHER_BYTES and name in USE_IMATRIX])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("imatrix", IMATRICES)
def test_quantize_with_an_imatrix(name: str, weights: str, imatrix: str) -> None:
    same_blocks(name, WEIGHTS[weights](), IMATRICES[imatrix]())


@pytest.mark.parametrize("name", LIBGGUF)
def test_which_formats_need_an_imatrix(name: str) -> None:
    assert (FORMATS[name].imatrix == "required") == libgguf.quantize_requires_imatrix(FORMATS[name].type)


@pytest.mark.parametrize("name", LIBGGUF)
def test_dequantize_any_bytes(name: str) -> None:
    form = FORMATS[name]
    packed = np.random.default_rng(9).integers(0, 256, (256, form.row_bytes(K)), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = np.asarray(libgguf.dequantize_rows(packed, form.type), np.float32).reshape(256, K)
        assert_same_bits(dequantize(packed, name), expected)
