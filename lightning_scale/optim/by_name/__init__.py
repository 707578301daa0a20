"""Optimizer state by the name of its layer, whole, whatever layout it was made in or is to be used in.

A layer's state in this form has the entries that an unsharded run keeps, in the layer's shape: so a file of it is what DDP
saves. 8-bit codes are those that were stored. Where an edge between two ranks had cut a block of codes in two with a scale
each, ``<key>_cut_starts`` (int64) and ``<key>_cut_absmax`` (float32) say where in the layer the further scales begin;
``<key>_absmax`` holds the scale that each block begins with.
"""

from __future__ import annotations

from lightning_scale.optim.by_name.fill import fill
from lightning_scale.optim.by_name.mend import by_blocks, mended
from lightning_scale.optim.by_name.pieces import Piece, pieces
from lightning_scale.optim.by_name.whole import whole

__all__ = ["Piece", "by_blocks", "fill", "mended", "pieces", "whole"]
