"""The dynamic code written anew: its 256 values in float64, and the nearest one by looking at all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def values(signed: bool) -> NDArray[np.float64]:
    """Seven decades below 1, each cut into equal parts; the parts' middles, 0 and 1, as float32 holds them."""
    table = [0.0, 1.0]
    for exponent in range(-6, 1):
        parts = 2 ** (6 + exponent) if signed else 2 ** (7 + exponent)
        edges = np.linspace(0.1, 1.0, parts + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0**exponent
        table += [*means, *(-means if signed else [])]
    return np.sort(np.array(table)).astype(np.float32).astype(np.float64)


def nearest(x: NDArray[Any], signed: bool) -> NDArray[np.int64]:
    """Index of the nearest value; of two equally near ones that of smaller magnitude. In the unsigned code a positive
    number is never 0. Distances are differences of float32 numbers in float64."""
    table = values(signed)
    distance = np.abs(np.asarray(x, dtype=np.float64).reshape(-1, 1) - table)
    order = np.argsort(np.abs(table), kind="stable")  # the first of the least wins: the smaller magnitude first
    found = order[np.argmin(distance[:, order], axis=1)].reshape(np.shape(x))
    return found if signed else np.where(np.asarray(x) > 0, np.maximum(found, 1), found)


def quantize(x: NDArray[Any], signed: bool, start: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Codes and absmax of float32 numbers, one block of 256 (of the grid from the parameter's element 0) at a time."""
    x = np.asarray(x, dtype=np.float32)
    codes, scales = [], []
    position = 0
    while position < len(x):
        end = min(len(x), position + 256 - (start + position) % 256)
        block = x[position:end]
        absmax = np.float32(np.abs(block).max())
        scaled = block / absmax if absmax else np.zeros_like(block)
        codes.append(nearest(scaled, signed))
        scales.append(float(absmax))
        position = end
    return (np.concatenate(codes) if codes else np.zeros(0, np.int64)), np.array(scales)


def dequantize(
    codes: NDArray[np.int64], absmax: NDArray[np.float64], signed: bool, start: int = 0
) -> NDArray[np.float64]:
    """What the codes stand for: each product rounded to float32."""
    table = values(signed).astype(np.float32)
    blocks = (start + np.arange(len(codes))) // 256 - start // 256
    return (table[codes] * absmax.astype(np.float32)[blocks]).astype(np.float64)
