"""Step counts and what they say of the moments' bias, in one launch for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant
from lightning_scale.optim.kernels.fused.launch import launch
from lightning_scale.optim.kernels.fused.table import pointers
from lightning_scale.optim.layout import Layout

_BLOCK = 256


@triton.jit(do_not_specialize=["tensors"])
def _count(  # type: ignore[no-untyped-def]
    steps,  # [tensors] int64: pointers to float32
    betas,  # [2] float64
    finite,  # 0-d: a bool (as int8)
    corrections,  # [tensors, 2] float32
    tensors,
    TEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step more for each tensor, and 1 - β^t of both betas; on a step that is skipped nothing."""
    counted = tensors
    if TEST:
        counted = tl.where(tl.load(finite) != 0, tensors, 0)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(steps + i, mask=i < counted, other=0).to(tl.pointer_type(tl.float32))
    t = tl.load(at, mask=i < counted, other=0.0) + 1
    tl.store(at, t, mask=i < counted)
    for which in tl.static_range(2):
        # float32 counts exactly up to 2^24.
        left, square, power = t.to(tl.int32), tl.load(betas + which), tl.full([BLOCK], 1.0, tl.float64)
        for _ in tl.static_range(25):
            power = tl.where(left % 2 == 1, power * square, power)
            square = square * square
            left = left // 2
        tl.store(corrections + 2 * i + which, (1 - power).to(tl.float32), mask=i < counted)


def count_steps(
    layout: Layout, steps: Sequence[Tensor], betas: tuple[float, float], finite: Tensor, test: bool
) -> Tensor:
    """Count this step, unless it is skipped, and find 1 - β^t of the moments, computed in float64.

    Args:
        layout: Keeps the table.
        steps: 0-d float32 tensors, one a local tensor.
        betas: β1, β2.
        finite: 0-d int8, 0 where the step is skipped.
        test: Whether ``finite`` counts.

    Returns:
        [tensors, 2] float32; of a step that is skipped, anything.
    """
    device = steps[0].device
    corrections = torch.empty(len(steps), 2, device=device)
    launch(
        _count,
        -(-len(steps) // _BLOCK),
        pointers(layout, "steps", steps, device),
        constant(layout, "betas", betas, torch.float64, device),
        finite,
        corrections,
        len(steps),
        TEST=test,
        BLOCK=_BLOCK,
    )
    return corrections
