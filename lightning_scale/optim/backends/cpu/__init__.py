"""Steps on CPUs by kernels that numba compiles, once for a machine. Imports numba.

The kernels take ranges of chunks, let go of the interpreter's lock, and are spread over the threads that torch has started.
"""
