"""What ops and kernels are: arguments, sizes, grids, schedules, keys, and which kernel serves a problem. Pure data, below the runtime."""

from iq.kernels.choose import Problem, choose, chosen
from iq.kernels.kernel import Axis, Kernel, Tensor
from iq.kernels.ops import DTYPES, OPS, Op
from iq.kernels.plan import Dispatch, plan
from iq.kernels.spec import KernelSpec, kernels, select

__all__ = [
    "DTYPES",
    "OPS",
    "Axis",
    "Dispatch",
    "Kernel",
    "KernelSpec",
    "Op",
    "Problem",
    "Tensor",
    "choose",
    "chosen",
    "kernels",
    "plan",
    "select",
]
