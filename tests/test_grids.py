"""The grids of the I-quants against gguf-py's, and what their templates rely on."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from iq.formats import FORMATS, grids
from iq.formats.grid import GridFormat
from iq.kernels import KernelSpec
from iq.targets import TARGETS

GRIDS = {
    "IQ1_S": grids.IQ1,
    "IQ1_M": grids.IQ1,
    "IQ2_XXS": grids.IQ2_XXS,
    "IQ2_XS": grids.IQ2_XS,
    "IQ2_S": grids.IQ2_S,
    "IQ3_XXS": grids.IQ3_XXS,
    "IQ3_S": grids.IQ3_S,
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_ggmls(name: str) -> None:
    theirs = getattr(gguf.quants, name)
    theirs.init_grid()
    assert GRIDS[name].levels == theirs.grid_map
    np.testing.assert_array_equal(GRIDS[name].values, theirs.grid[0, 0])


@pytest.mark.parametrize("name", [name for name in GRIDS if FORMATS[name.lower()].signed])
def test_tables_hold_magnitudes_a_byte_each(name: str) -> None:
    """Above 0, which with_signs cannot negate, and below 128."""
    grid = GRIDS[name]
    [table] = FORMATS[name.lower()].tables().values()
    assert table.shape == (len(grid.values), grid.width // 4)
    np.testing.assert_array_equal(table.view(np.int8), grid.values)
    assert grid.values.min() > 0


@pytest.mark.parametrize("name", GRIDS)
def test_scales_and_weights_are_exact_in_float32(name: str) -> None:
    """Any order of their factors gives ggml's floats, then: every finite d, every s, every quant."""
    form = FORMATS[name.lower()]
    assert issubclass(form, GridFormat)
    d = np.arange(65536, dtype=np.uint16).view(np.float16)
    d = d[np.isfinite(d)].astype(np.float32)[:, None]
    s = np.arange(8 if form.zero else 16)
    scales = form.scales(d, s)
    np.testing.assert_array_equal(scales, d.astype(np.float64) * form.step * (2 * s + 1))
    for quant in (-9, -7, -1, 1, 7, 9) if form.zero else GRIDS[name].levels:
        np.testing.assert_array_equal(scales * np.float32(quant), scales.astype(np.float64) * quant)


@pytest.mark.needs_extras
def test_what_does_not_decode_has_no_table() -> None:
    """A matvec's activations are quantized by a dispatch of its own."""
    from iq.compile.render import render

    rendered = render([KernelSpec.parse("mul_mat_vec.iq2_xxs.1")], TARGETS["gfx1100"])
    quantizes, decodes = rendered.split("hal.executable.source ")[1:]
    assert [part.count('"memref.global"') for part in (quantizes, decodes)] == [0, 1]
    assert [part.count("constant table") for part in (quantizes, decodes)] == [0, 1]
