"""IREE's runtime: how CPUs run kernels, and the other way for GPUs. Calls return when they are done; there are no streams or graphs."""
