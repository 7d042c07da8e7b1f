"""An emulator of AMD GPUs' instruction sets, and a fake HIP runtime on top of it: ROCm code objects run on the CPU, in process.

What runs here is executed under ISA emulation. It is not validated on hardware: timing, hazards between instructions and caches are not
modelled, transcendental functions are rounded from float64, and matrix instructions accumulate in an order of their own.

From the bottom up: `decoder` (a listing's text to instructions), `program` (a loaded code object), `registers` and `spaces` (what waves
work on), `statistics` (what is counted), `alu` (arithmetic as tables), the units (`vector_unit`, `scalar_unit`, `memory_unit`, ...: an
instruction to a Python function), `compiler` (which unit), `dispatch` (a launch's initial state), `machine` (all waves until they have
ended).
"""
