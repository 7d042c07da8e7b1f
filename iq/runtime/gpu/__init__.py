"""GPUs driven through their driver's own API: kernels are launched on streams, calls return at once, and can be captured in graphs."""
