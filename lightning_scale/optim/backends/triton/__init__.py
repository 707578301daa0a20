"""Triton kernels: a constant number of launches a step, however many tensors there are. Imports triton."""
