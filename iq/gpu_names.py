"""The AMD GPUs that people have, by name, and the processor (gfx id) of each.

From AMD's "GPU specifications" (rocm.docs.amd.com, reference) and the table of processors in LLVM's AMDGPUUsage; gfx1031 to gfx1036 and
the APUs, which these have in part, as Gentoo's amdgpu_targets has them. Names are in lower case, without spaces.
"""

from __future__ import annotations

_NAMES: dict[str, str] = {
    "gfx906": "mi50 mi60 radeonvii radeonprovii",
    "gfx908": "mi100",
    "gfx90a": "mi210 mi250 mi250x",
    "gfx942": "mi300a mi300x mi325x",
    "gfx950": "mi350x mi355x",
    "gfx1010": "rx5600xt rx5700 rx5700xt w5700",
    "gfx1012": "rx5500 rx5500xt w5500",
    "gfx1030": "rx6800 rx6800xt rx6900xt rx6950xt w6800 v620",
    "gfx1031": "rx6700 rx6700xt rx6750xt",
    "gfx1032": "rx6600 rx6600xt rx6650xt w6600",
    "gfx1033": "vangogh steamdeck",
    "gfx1034": "rx6400 rx6500xt w6400",
    "gfx1035": "rembrandt 660m 680m",
    "gfx1036": "raphael",
    "gfx1100": "rx7900gre rx7900xt rx7900xtx w7800 w7900",
    "gfx1101": "rx7700 rx7700xt rx7800xt w7700 v710",
    "gfx1102": "rx7600 rx7600xt w7500 w7600",
    "gfx1103": "phoenix hawkpoint 740m 760m 780m",
    "gfx1150": "strixpoint 880m 890m",
    "gfx1151": "strixhalo 8050s 8060s",
    "gfx1152": "krackan krackanpoint 840m 860m",
    "gfx1153": "820m",
    "gfx1200": "rx9060 rx9060xt",
    "gfx1201": "rx9070 rx9070gre rx9070xt r9700",
}

# The id of the processor of each product.
PRODUCTS: dict[str, str] = {name: processor for processor, names in _NAMES.items() for name in names.split()}


def products_of(processor: str) -> list[str]:
    """The products that have a processor, in the order of the table; none for one that is no AMD GPU."""
    return _NAMES.get(processor, "").split()
