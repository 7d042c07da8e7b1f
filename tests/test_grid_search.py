"""The searches of iq1 to iq3: neighbours in a grid, what is refused, and the turns that a search seldom takes."""

from __future__ import annotations

import itertools

import libgguf
import numpy as np
import pytest
from format_samples import USE_IMATRIX, normal
from numpy.typing import NDArray

from iq.errors import FormatError
from iq.formats import FORMATS, dequantize, grid_search, grids, quantize
from iq.formats.grid_search import Neighbours, neighbours, split_signs

GRIDS = {"iq2_xxs": (grids.IQ2_XXS, 2), "iq2_xs": (grids.IQ2_XS, 2), "iq2_s": (grids.IQ2_S, 1), "iq1": (grids.IQ1, 3)}
GRIDS |= {"iq3_xxs": (grids.IQ3_XXS, 2), "iq3_s": (grids.IQ3_S, 3)}
SEARCHED = [name for name, form in FORMATS.items() if form.tables()]
EVEN = ["iq2_xxs", "iq2_xs", "iq3_xxs"]
REQUIRED = [name for name, form in FORMATS.items() if form.imatrix == "required"]


def libggufs(name: str, weights: NDArray[np.float32], imatrix: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    packed = np.asarray(libgguf.quantize_rows(weights, FORMATS[name].type, imatrix=imatrix)).view(np.uint8)
    return packed.reshape(*weights.shape[:-1], -1)


def as_ggml_lists(entries: list[tuple[int, ...]], levels: tuple[int, ...], distances: int) -> list[int]:
    """iq2xs_init_impl and iq3xs_init_impl for one combination of levels: sort by distance, and by number; stop after some distances."""
    ordered = sorted((sum((a - b) ** 2 for a, b in zip(entry, levels, strict=True)), number) for number, entry in enumerate(entries))
    found: list[int] = []
    last, have = ordered[0][0], 1
    for distance, number in ordered:
        if distance > last:
            if have == distances:
                break
            last, have = distance, have + 1
        found.append(number)
    return found


@pytest.mark.parametrize("name", GRIDS)
def test_neighbours_are_those_that_ggml_lists(name: str) -> None:
    grid, distances = GRIDS[name]
    base, near = len(grid.levels), neighbours(*GRIDS[name])
    entries = [tuple(entry) for entry in grid.numbers.tolist()]
    for code in (0, 1, len(near.entry) - 1, *np.random.default_rng(1).integers(0, base**grid.width, 100).tolist()):
        levels = tuple(code // base**member % base for member in range(grid.width))
        if levels in entries:
            assert near.entry[code] == entries.index(levels)
            assert near.count[code] == 0
        else:
            assert near.entry[code] == -1
            listed = near.neighbours[near.first[code] : near.first[code] + near.count[code]]
            assert listed.tolist() == as_ggml_lists(entries, levels, distances)


def nearest_one_by_one(near: Neighbours, x: NDArray[np.float32], w: NDArray[np.float32], scale: np.float32, code: int) -> int:
    best, found = np.float32(np.inf), -1
    for entry in near.neighbours[near.first[code] : near.first[code] + near.count[code]]:
        distance = np.float32(0)
        for value, xi, wi in zip(near.values[:, entry], x, w, strict=True):
            diff = scale * value - xi
            distance += wi * diff * diff
        if distance < best:
            best, found = distance, int(entry)
    return found


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("at_a_time", [1, 7, 4096])
def test_nearest_is_the_first_of_the_least_distance(name: str, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_search, "LANES", at_a_time)
    near = neighbours(*GRIDS[name])
    rng = np.random.default_rng(2)
    codes = rng.choice(np.flatnonzero(near.entry < 0), 40)
    width = len(near.values)
    x = np.abs(normal((width, 40), 3))
    w = rng.integers(0, 3, (width, 40)).astype(np.float32)  # with zeros, so that distances are equal
    w[:, :5] = 0
    scale = rng.uniform(0.1, 0.5, 40).astype(np.float32)
    found = near.nearest(x, w, scale, codes, near.values, np.zeros(40, np.intp))
    assert found.tolist() == [nearest_one_by_one(near, x[:, i], w[:, i], scale[i], codes[i]) for i in range(40)]


def test_of_eight_signs_an_even_number_is_set() -> None:
    """The weight that matters least gives way: the first of the least, and its magnitude is negative then."""
    x = np.array([[-1, 2, -3, 4, -0.5, 0.5, 6, 7], [-1, -2, 3, 4, 5, 6, 7, 8]], np.float32).T
    magnitudes, signs = split_signs(x, np.ones_like(x), even=True)
    assert signs.tolist() == [[0b00000101, 0b00000011]]
    assert magnitudes[:, 0].tolist() == [1, 2, 3, 4, -0.5, 0.5, 6, 7]
    assert magnitudes[:, 1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    _, signs = split_signs(x, np.ones_like(x), even=False)
    assert signs.tolist() == [[0b00010101, 0b00000011]]


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("rows", [0, 2])
def test_a_missing_imatrix_is_refused_where_ggml_needs_one(name: str, rows: int) -> None:
    with pytest.raises(FormatError, match=rf"^{name} cannot be quantized without an imatrix.* each of the 256 columns"):
        quantize(np.ones((rows, 256)), name)


def test_these_require_an_imatrix() -> None:
    assert sorted(REQUIRED) == ["iq1_s", "iq2_xs", "iq2_xxs"]


@pytest.mark.parametrize("name", ["iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])
def test_weights_on_which_ggml_aborts_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match=r"groups of weights cannot be quantized: .* beyond float32 .*; scale"):
        quantize(with_squares_beyond_float32(), name, np.ones(512))


@pytest.mark.parametrize("name", ["iq1_s", "iq2_xxs"])
def test_on_which_others_do_not(name: str) -> None:
    weights, imatrix = with_squares_beyond_float32(), np.ones(512, np.float32)
    np.testing.assert_array_equal(quantize(weights, name, imatrix), libggufs(name, weights, imatrix))


def with_squares_beyond_float32() -> NDArray[np.float32]:
    weights = normal((3, 512))
    weights[1] *= np.float32(1e25)
    return weights


@pytest.mark.parametrize("name", EVEN)
def test_a_negative_scale_turns_all_signs(name: str) -> None:
    """A weight that counts much for its size, and is the one whose sign gives way, can outweigh all others."""
    weights = np.ones((2, 256), np.float32)
    weights[:, ::8] = -0.001
    imatrix = np.full(256, 0.02, np.float32)
    imatrix[::8] = 1e4
    packed = quantize(weights, name, imatrix)
    np.testing.assert_array_equal(packed, libggufs(name, weights, imatrix))
    restored = dequantize(packed, name)
    assert (restored[:, 1::8] < 0).any()


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("zeros", list(itertools.product([0, 1], repeat=3)))
def test_sub_blocks_of_zeros(name: str, zeros: tuple[int, ...]) -> None:
    """Wherever they are in a block; with an importance of zero for the next one too."""
    weights, imatrix = normal((4, 512), 5), np.ones(512, np.float32)
    for number, zero in enumerate(zeros):
        if zero:
            weights[:, 64 * number : 64 * number + 32] = 0
            imatrix[64 * number + 32 : 64 * number + 48] = 0
    np.testing.assert_array_equal(quantize(weights, name, imatrix), libggufs(name, weights, imatrix))


def test_what_ggml_makes_of_zeros_in_iq3_s() -> None:
    """Right where zeros come last, and, by an oversight of ggml's, not where other weights follow."""
    weights = normal((1, 256))
    exact = dequantize(quantize(weights, "iq3_s"), "iq3_s")
    last, first = weights.copy(), weights.copy()
    last[:, 224:] = 0
    first[:, :32] = 0
    for rows, right in ((last, slice(0, 224)), (first, slice(32, 256))):
        restored = dequantize(quantize(rows, "iq3_s"), "iq3_s")
        error = np.abs(restored - exact)[:, right].max()
        assert (error < 0.5) == (rows is last)


@pytest.mark.parametrize("name", SEARCHED)
def test_division_of_lanes_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name in USE_IMATRIX
    weights, imatrix = normal((8, 512), 6), np.square(normal((512,), 7))
    whole = quantize(weights, name, imatrix)
    monkeypatch.setattr(grid_search, "LANES", 3)
    np.testing.assert_array_equal(quantize(weights, name, imatrix), whole)
