"""Stochastic rounding of float32 to bfloat16: the random numbers of every element, and the rounding in plain torch.

A weight between two neighbours of bfloat16 becomes the upper one with the probability that is its place between them: 16 random
bits are added below those that are kept, and the rest is cut off (Connolly, Higham and Mary 2021, SIAM J. Sci. Comput. 43(1)).

The bits of an element are a hash of the seed, its layer's name, its tensor's step count and its number in the whole layer:
the same wherever it lies, for any number of threads, in every backend, and after a resume; no generator is drawn from.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket
from lightning_scale.optim.layout import bare

_WORD = 0xFFFFFFFF
_STEP = 0x9E3779B9  # 2^32 over the golden ratio, odd


def mixed(x: Tensor) -> Tensor:
    """Return 32 bits that all depend on all of a number's 32, one to one (int64; Wellons' "lowbias32")."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _WORD
    x = (x ^ (x >> 15)) * 0x846CA68B & _WORD
    return x ^ (x >> 16)


def layer_words(seed: int, name: str) -> tuple[int, int]:
    """Return two numbers of 32 bits for a layer."""
    digest = blake2b(f"{seed} {bare(name)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def keys(bucket: Bucket, layers: Tensor, tensors: Tensor, starts: Tensor) -> Tensor:
    """Return what the random bits of this step's elements are made from, before the step is counted.

    Args:
        bucket: What is stepped, with a ``rounding_seed``.
        layers: Of each of R runs of elements, the layer. As all arguments 1-D, whole numbers, on the bucket's device.
        tensors: Its local tensor.
        starts: Its first element's number n in the layer. No run passes a multiple of 2^32.

    Returns:
        [R, 4] int64, of 32 bits each: n's lower half, two keys, and 0. See `random_bits`.
    """
    seed, layout = bucket.rounding_seed or 0, bucket.layout

    def words() -> Tensor:
        found = [layer_words(seed, layer.name) for layer in layout.layers]
        return torch.tensor(found, dtype=torch.int64, device="cpu").view(-1, 2).to(bucket.device)

    one, other = layout.once(("rounding", seed, bucket.device), words)[layers.long()].unbind(1)
    step = (torch.stack(bucket.steps).to(bucket.device)[tensors.long()].long() + 1) * _STEP
    one, other = mixed((one + step) & _WORD), mixed((other + step) & _WORD) ^ _upper(starts)
    return torch.stack([starts & _WORD, one, other, torch.zeros_like(one)], dim=1)


def _upper(index: Tensor) -> Tensor:
    """What the upper half of an element's number does to the second key."""
    return (index >> 32) * _STEP & _WORD


def random_bits(index: Tensor, key: Tensor) -> Tensor:
    """Return 16 random bits for each element.

    Args:
        index: Their numbers in the layer, int64.
        key: The row of `keys` of a run that begins with element 0.
    """
    return mixed(mixed((index & _WORD) ^ key[1]) ^ key[2] ^ _upper(index)) >> 16


def stochastically_rounded(x: Tensor, bits: Tensor) -> Tensor:
    """Return float32 numbers as bfloat16, given 16 random bits for each.

    What bfloat16 has stays as it is, infinities and NaN too; a finite number above the largest becomes the largest, never Inf.
    """
    whole = x.view(torch.int32).to(torch.int64) & _WORD
    magnitude = whole & 0x7FFFFFFF
    kept = ((magnitude + bits) >> 16).clamp(max=0x7F7F)
    kept = torch.where(magnitude < 0x7F800000, kept, 0x7F80) | (whole >> 16 & 0x8000)
    return torch.where(magnitude > 0x7F800000, 0x7FC0, kept).to(torch.int16).view(torch.bfloat16)
