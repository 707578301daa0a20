"""The optimizers' arithmetic through Inductor's C++, for CPU tensors; imported only where it is used.

Each function is compiled once, ahead of time and for any number of rows, and kept in Inductor's cache folder
(`programs`). Everything is looked at as rows of 256 elements (`rows`): the 8-bit states' blocks, and few enough that a
float32 sum over a row is as good as exact. Rows do not know of each other, so bits do not depend on the number of
threads, nor on where a row lies.
"""

from __future__ import annotations

from lightning_scale.optim.kernels.compiled.eight_bit import adamw8bit, lamb8bit, lars8bit, sgd8bit
from lightning_scale.optim.kernels.compiled.lamb import lamb
from lightning_scale.optim.kernels.compiled.lars import lars
from lightning_scale.optim.kernels.compiled.look import look
from lightning_scale.optim.kernels.compiled.whole_layers import steps_alone

__all__ = ["adamw8bit", "lamb", "lamb8bit", "lars", "lars8bit", "look", "sgd8bit", "steps_alone"]
