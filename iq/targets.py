"""The processors iq compiles for: ids, families, what each can do, and which artifact a device may run.

A target is one row here. ROCm and CUDA targets carry IREE's target attribute in full, because `--iree-rocm-target` refuses by name
processors that the compiler can serve (gfx1030 among them) and `--iree-cuda-target=sm_90` is broken in IREE 3.13.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from iq.errors import TargetError
from iq.gpu_names import PRODUCTS


@dataclass(frozen=True)
class MatrixUnit:
    """How tiles of 16x16 f16 results with f32 sums are multiplied.

    name: of its template (templates/targets/matrix). cores: whether it is a unit of its own, so that float mul_mat is the default; else
    vector instructions do the work. A fragment is 16 rows or columns by fragment_k: a lane holds fragment_w and fragment_x f16 of it, and
    `results` f32 of 16x16 results. instructions: their class in iq.inspect.
    """

    name: str
    cores: bool
    fragment_k: int
    fragment_w: int
    fragment_x: int
    results: int
    instructions: str


MFMA = MatrixUnit("mfma", True, fragment_k=32, fragment_w=8, fragment_x=8, results=4, instructions="mfma")
WMMA_GFX11 = MatrixUnit("wmma_gfx11", True, fragment_k=32, fragment_w=32, fragment_x=32, results=8, instructions="wmma")
WMMA_GFX12 = MatrixUnit("wmma_gfx12", True, fragment_k=32, fragment_w=16, fragment_x=16, results=8, instructions="wmma")
MMA_SYNC = MatrixUnit("mma_sync", True, fragment_k=32, fragment_w=16, fragment_x=16, results=8, instructions="mma")
# Vector instructions: a lane has 2 x 4 of the results on wave32, 2 x 2 on wave64.
DOT2 = MatrixUnit("dot2", False, fragment_k=8, fragment_w=16, fragment_x=32, results=8, instructions="dot")
DOT2_WAVE64 = MatrixUnit("dot2", False, fragment_k=8, fragment_w=16, fragment_x=16, results=4, instructions="dot")
FMA_MIX = MatrixUnit("fma_mix", False, fragment_k=8, fragment_w=16, fragment_x=32, results=8, instructions="valu")


@dataclass(frozen=True)
class Isa:
    """A CPU's instruction set.

    name: of its template (templates/targets/cpu). elf: what IREE calls its ELF. vector: bytes that IREE takes for a vector.
    data_layout: LLVM's.
    """

    name: str
    elf: str
    vector: int
    data_layout: str


X86_64 = Isa("x86_64", "x86_64", 32, "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128")
AARCH64 = Isa("aarch64", "arm_64", 16, "e-m:e-p270:32:32-p271:32:32-p272:64:64-i8:8:32-i16:16:32-i64:64-i128:128-n32:64-S128-Fn32")


@dataclass(frozen=True)
class Target:
    """One processor.

    id: as the device and the bundle spell it ("gfx942", "x86-64-v3", "sm_90").
    family: "rocm", "cuda" or "cpu": the template of target functions.
    wave: lanes of a wave (1 on a CPU).
    dot: the instruction that multiplies four int8 pairs and adds them up; "none" on GPUs that have none.
    like: the target whose schedules it shares, where it has none of its own.
    matrix: what float mul_mat multiplies tiles with; None where it has no tile kernel.
    lds: bytes of LDS that a workgroup may have. simds: of what runs a workgroup.
    isa: of a CPU. cpu, cpu_features: what LLVM calls a CPU target. cpu_requires: flags of /proc/cpuinfo that a host must show.
    """

    id: str
    family: str
    wave: int
    dot: str
    like: str = ""
    matrix: MatrixUnit | None = None
    lds: int = 65536
    simds: int = 4
    isa: Isa | None = None
    cpu: str = ""
    cpu_features: str = ""
    cpu_requires: frozenset[str] = frozenset()

    @property
    def matrix_cores(self) -> bool:
        """Whether it has matrix units, so that float mul_mat is the default for many rows of activations."""
        return self.matrix is not None and self.matrix.cores

    @property
    def lineage(self) -> tuple[str, ...]:
        """The names that tables of schedules know it by, the most particular first: its processor, what that is like, its family."""
        names = [self.id.partition(":")[0]]
        if self.like:
            names += TARGETS[self.like].lineage if self.like in TARGETS else (self.like,)
        return tuple(dict.fromkeys((*names, self.family)))

    @property
    def executable_format(self) -> str:
        """IREE's name of the executable format inside the vmfb."""
        return f"embedded-elf-{self.isa.elf}" if self.isa else {"rocm": "rocm-hsaco-fb", "cuda": "cuda-nvptx-fb"}[self.family]

    @property
    def device_attribute(self) -> str:
        """The `#hal.device.target` attribute that a module for this target carries."""
        driver, backend = {"rocm": ("hip", "rocm"), "cuda": ("cuda", "cuda"), "cpu": ("local", "llvm-cpu")}[self.family]
        fields = self._cpu_fields(self.isa) if self.isa else {"rocm": self._rocm_fields, "cuda": self._cuda_fields}[self.family]()
        return f'#hal.device.target<"{driver}", [#hal.executable.target<"{backend}", "{self.executable_format}", {{{", ".join(fields)}}}>]>'

    def _cpu_fields(self, isa: Isa) -> list[str]:
        return [
            f'cpu = "{self.cpu}"',
            f'cpu_features = "{self.cpu_features}"',
            f'data_layout = "{isa.data_layout}"',
            "max_stack_allocation_size = 32768 : i64",
            f"native_vector_size = {isa.vector} : i64",
            f'target_triple = "{isa.name}-unknown-unknown-eabi-elf"',
        ]

    def _rocm_fields(self) -> list[str]:
        more = [
            "max_load_instruction_bits = 128",
            f"simds_per_wgp = {self.simds}",
            "vgpr_space_bits = 8192",
            "workgroup_memory_bank_count = 32",
        ]
        return ['abi = "hip"', self._gpu_field("32, 64" if self.wave == 32 else "64", "", more)]

    def _cuda_fields(self) -> list[str]:
        return [self._gpu_field("32", "+ptx80", [])]

    def _gpu_field(self, waves: str, features: str, more: list[str]) -> str:
        """IREE's description of a GPU. The matrix instructions are left out: our kernels name them themselves."""
        wgp = [
            "compute = fp64|fp32|fp16|int64|int32|int16|int8",
            "storage = b64|b32|b16|b8",
            "subgroup = shuffle|arithmetic",
            "dot = dp4xi8toi32",
            "mma = []",
            f"subgroup_size_choices = [{waves}]",
            "max_workgroup_sizes = [1024, 1024, 1024]",
            "max_thread_count_per_workgroup = 1024",
            f"max_workgroup_memory_bytes = {self.lds}",
            "max_workgroup_counts = [2147483647, 65535, 65535]",
            *more,
        ]
        return f'iree_codegen.target_info = #iree_gpu.target<arch = "{self.id}", features = "{features}", wgp = <{", ".join(wgp)}>>'


_AVX2 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_AVX512_VNNI = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}


def _cpu(id: str, isa: Isa, dot: str, cpu: str, features: str, requires: frozenset[str]) -> Target:
    return Target(id, "cpu", 1, dot, isa=isa, cpu=cpu, cpu_features=features, cpu_requires=requires)


TARGETS: dict[str, Target] = {
    t.id: t
    for t in (
        Target("gfx906", "rocm", 64, "sdot4", like="gfx90a", matrix=DOT2_WAVE64),
        Target("gfx908", "rocm", 64, "sdot4", like="gfx90a", matrix=MFMA),
        Target("gfx90a", "rocm", 64, "sdot4", matrix=MFMA),
        Target("gfx942", "rocm", 64, "sdot4", like="gfx90a", matrix=MFMA),
        Target("gfx950", "rocm", 64, "sdot4", like="gfx90a", matrix=MFMA, lds=163840),
        Target("gfx1010", "rocm", 32, "none", like="gfx1030", matrix=FMA_MIX),  # neither v_dot4 nor v_dot2
        Target("gfx1012", "rocm", 32, "sdot4", like="gfx1030", matrix=DOT2),
        Target("gfx1030", "rocm", 32, "sdot4", matrix=DOT2),
        *(Target(f"gfx103{n}", "rocm", 32, "sdot4", like="gfx1030", matrix=DOT2) for n in range(1, 7)),
        Target("gfx1100", "rocm", 32, "sdot4", matrix=WMMA_GFX11),
        *(Target(f"gfx110{n}", "rocm", 32, "sdot4", like="gfx1100", matrix=WMMA_GFX11) for n in range(1, 4)),
        *(Target(f"gfx115{n}", "rocm", 32, "sdot4", like="gfx1100", matrix=WMMA_GFX11) for n in range(4)),
        Target("gfx1200", "rocm", 32, "sdot4", like="gfx1100", matrix=WMMA_GFX12),
        Target("gfx1201", "rocm", 32, "sdot4", like="gfx1100", matrix=WMMA_GFX12),
        Target("sm_80", "cuda", 32, "dp4a", matrix=MMA_SYNC, lds=166912),
        Target("sm_90", "cuda", 32, "dp4a", like="sm_80", matrix=MMA_SYNC, lds=232448),
        _cpu("x86-64-v3", X86_64, "pmaddubsw", "x86-64-v3", "", _AVX2),
        _cpu("x86-64-v3-avxvnni", X86_64, "vpdpbusd", "x86-64-v3", "+avxvnni", _AVX2 | {"avx_vnni"}),
        _cpu("x86-64-v4-vnni", X86_64, "vpdpbusd", "x86-64-v4", "+avx512vnni", _AVX512_VNNI),
        # x18 is the platform's, as IREE sets it; Linux names dot products asimddp.
        _cpu("aarch64-dotprod", AARCH64, "sdot", "generic", "+dotprod,+reserve-x18", frozenset({"asimd", "asimddp"})),
    )
}

# Names that stand for several targets on the command line.
GROUPS: dict[str, tuple[str, ...]] = {
    family: tuple(t.id for t in TARGETS.values() if t.family == family) for family in ("rocm", "cuda", "cpu")
}


def parse_targets(names: str | list[str] | tuple[str, ...]) -> list[Target]:
    """Targets from ids, groups or products ("gfx942,cpu", "mi300x"), in the order given, each once.

    A product's name may be written as people do: "RX 7900 XTX" is rx7900xtx. Raises TargetError for a name that is none of them.
    """
    parts = names.split(",") if isinstance(names, str) else list(names)
    ids: dict[str, None] = {}
    for part in (p.strip() for p in parts):
        product = re.sub(r"[ _-]", "", part).lower()
        if part in GROUPS:
            ids.update(dict.fromkeys(GROUPS[part]))
        elif part in TARGETS or product in PRODUCTS:
            ids[part if part in TARGETS else PRODUCTS[product]] = None
        else:
            raise TargetError(f"unknown target {part!r}{_meant(part, product)}\n`iq targets` lists them, and the products that have them")
    return [TARGETS[i] for i in ids]


def _meant(part: str, product: str) -> str:
    """What somebody may have meant by the name of no target."""
    close = (
        difflib.get_close_matches(part, (*TARGETS, *GROUPS), 3, 0.75)
        or [name for name in PRODUCTS if product and name.startswith(product)]
        or difflib.get_close_matches(product, PRODUCTS, 3, 0.75)
    )
    return f"; is {' or '.join(close)} meant?" if close else ""


@dataclass(frozen=True)
class DeviceId:
    """What a device says it is: a processor and, on AMD, its feature settings ("gfx90a:sramecc+:xnack-")."""

    processor: str
    features: frozenset[str] = frozenset()

    _PATTERN = re.compile(r"([a-z0-9_-]+?)((?::[a-z]+[+-])*)")

    @classmethod
    def parse(cls, text: str) -> DeviceId:
        """Parse "gfx942" or "gfx942:sramecc+:xnack-". Raises TargetError on anything else."""
        match = cls._PATTERN.fullmatch(text.strip())
        if not match:
            raise TargetError(
                f"cannot parse the target id {text!r}; expected PROCESSOR[:feature+][:feature-], as in gfx90a:sramecc+:xnack-"
            )
        return cls(match[1], frozenset(f for f in match[2].split(":") if f))

    def __str__(self) -> str:
        return ":".join([self.processor, *sorted(self.features)])


@dataclass(frozen=True)
class Accepted:
    """The artifact may run on the device; a lower rank fits better."""

    rank: int


@dataclass(frozen=True)
class Rejected:
    """The artifact may not run on the device, and why. near: whether it is for devices of this kind, so that the reason is of interest."""

    reason: str
    near: bool = False


def match(artifact: DeviceId, device: DeviceId, cpu_flags: frozenset[str] = frozenset()) -> Accepted | Rejected:
    """Whether an artifact compiled for `artifact` may run on `device`.

    ROCm: the same processor, and every feature that the artifact pins set likewise on the device (an artifact that pins none runs with
    any setting); never another processor. CUDA: artifacts are PTX, which newer GPUs of the same or a later compute capability accept.
    CPU: every instruction set the target requires must be in `cpu_flags` (the flags of /proc/cpuinfo).
    """
    target = TARGETS.get(artifact.processor)
    if target is None:
        return Rejected(f"unknown processor {artifact.processor}")
    if target.family == "cpu":
        if device.processor != "cpu":
            return Rejected(f"{artifact} is for CPUs, the device is {device}")
        missing = sorted(target.cpu_requires - cpu_flags)
        if missing:
            return Rejected(f"{artifact} needs {', '.join(missing)}, which this CPU lacks", near=True)
        return Accepted(rank=len(_AVX512_VNNI) - len(target.cpu_requires))
    if target.family == "cuda":
        have, need = _compute_capability(device.processor), _compute_capability(artifact.processor)
        if have is None or need is None or need > have:
            return Rejected(f"{artifact} does not run on {device}", near=have is not None)
        return Accepted(rank=have - need)
    if artifact.processor != device.processor:
        return Rejected(f"{artifact} is for another processor than {device}")
    for feature in sorted(artifact.features):
        if feature not in device.features:
            return Rejected(f"{artifact} is pinned to {feature}, the device is {device}", near=True)
    return Accepted(rank=0 if artifact.features else 1)


def _compute_capability(processor: str) -> int | None:
    found = re.fullmatch(r"sm_(\d+)", processor)
    return int(found[1]) if found else None
