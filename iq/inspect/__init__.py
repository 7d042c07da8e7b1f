"""Compiled kernels read back: whether they wait for what they load."""
