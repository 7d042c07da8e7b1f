"""The grids of the I-quants against gguf-py's, and what their templates rely on."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from iq.formats import FORMATS, grids

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
