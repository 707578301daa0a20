"""Optimizer state as a kernel's operands: rows where they lie, and padded copies of short runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled import buffers
from lightning_scale.optim.kernels.compiled.rows import WIDTH, Run, rows_of
from lightning_scale.optim.state.moments import CodedMoment


class State(Protocol):
    """One kind of state of every segment."""

    def rows(self, run: Run) -> list[Tensor]:
        """The operands of a run of whole rows, as views."""

    def copies(self, runs: Sequence[Run]) -> list[Tensor]:
        """The operands of padded runs, in new memory."""

    def keep(self, runs: Sequence[Run], copies: list[Tensor]) -> None:
        """Store what a kernel made of `copies`."""


@dataclass(frozen=True)
class TensorState:
    """State in float32, of each local tensor in its shape."""

    tensors: list[Tensor]

    def rows(self, run: Run) -> list[Tensor]:
        return [rows_of(self.tensors[run.tensor], run)]

    def copies(self, runs: Sequence[Run]) -> list[Tensor]:
        return [buffers.padded(buffers.elements(self.tensors, runs), runs, 0.0)]

    def keep(self, runs: Sequence[Run], copies: list[Tensor]) -> None:
        torch._foreach_copy_(buffers.elements(self.tensors, runs), buffers.parts_of(copies[0], runs))


@dataclass(frozen=True)
class CodedState:
    """State in 8 bits, of each segment: codes, and the scale of each row."""

    moments: Sequence[CodedMoment]

    def rows(self, run: Run) -> list[Tensor]:
        moment = self.moments[run.segment]
        codes = moment.codes[run.offset : run.offset + run.length]
        return [codes.view(run.rows, WIDTH), self._scales(run).view(run.rows, 1)]

    def copies(self, runs: Sequence[Run]) -> list[Tensor]:
        zero = self.moments[runs[0].segment].code.zero
        scales = torch.zeros(buffers.row_count(runs), dtype=torch.float32, device="cpu")
        torch._foreach_copy_(self._scale_parts(scales, runs), [self._scales(run) for run in runs])
        return [buffers.padded(self._codes(runs), runs, zero), scales.view(-1, 1)]

    def keep(self, runs: Sequence[Run], copies: list[Tensor]) -> None:
        codes, scales = copies
        torch._foreach_copy_(self._codes(runs), buffers.parts_of(codes, runs))
        torch._foreach_copy_([self._scales(run) for run in runs], self._scale_parts(scales.view(-1), runs))

    def _codes(self, runs: Sequence[Run]) -> list[Tensor]:
        return [self.moments[run.segment].codes[run.offset : run.offset + run.length] for run in runs]

    def _scales(self, run: Run) -> Tensor:
        return self.moments[run.segment].absmax[run.block : run.block + run.rows]

    @staticmethod
    def _scale_parts(scales: Tensor, runs: Sequence[Run]) -> list[Tensor]:
        first = runs[0].row
        return [scales[run.row - first : run.row - first + run.rows] for run in runs]
