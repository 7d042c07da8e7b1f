"""Arithmetic of AMD GPU instructions as tables: mnemonic (without _e32, _e64, _dpp, _sdwa) -> Op. See `types` for how to read a row.

VECTOR   VALU. v_dual_x is v_x.
COMPARE  v_cmp_*; v_cmpx_* is the same row, written to EXEC.
SCALAR   SALU; functions return (result, scc), scc None where the instruction leaves it alone. Result "none": comparisons.
SAVEEXEC s_*_saveexec_* and s_*_wrexec_*: function(source, exec) -> (new exec, scc).
PACKED   VOP3P, element by element: the machine calls the function for the low and for the high elements, after op_sel and neg. An f32
         element is one register of a pair.
DOT      dot products of whole registers.
matrix   matrix(mnemonic, processor, wave): MFMA and WMMA, which depend on the generation.

Not here, since they move lanes or registers rather than compute: v_readlane, v_readfirstlane, v_writelane, v_permlane*, v_swap*,
v_pk_mov_b32, v_movrel*, ds_*, and control.
"""

from iq.emulator.alu.compare import COMPARE
from iq.emulator.alu.matrix import MatrixOp, MatrixOperandError, Modifiers, matrix
from iq.emulator.alu.packed import DOT, PACKED
from iq.emulator.alu.scalar import SAVEEXEC, SCALAR
from iq.emulator.alu.types import Mode, Op, UnsupportedMode
from iq.emulator.alu.vector import VECTOR

__all__ = [
    "COMPARE",
    "DOT",
    "PACKED",
    "SAVEEXEC",
    "SCALAR",
    "VECTOR",
    "MatrixOp",
    "MatrixOperandError",
    "Mode",
    "Modifiers",
    "Op",
    "UnsupportedMode",
    "matrix",
]
