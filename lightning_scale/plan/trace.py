"""A forward and a backward pass of a training step on tensors without contents, and the memory that they would take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from lightning_scale.plan.live import LiveBytes
from lightning_scale.plan.micro_batch import BatchShapes, Unknown
from lightning_scale.plan.on_a_gpu import as_on_a_gpu


@dataclass(frozen=True)
class Computing:
    """In which precision layers are computed, and by what."""

    parameters: torch.dtype | None = None
    """Of floating-point parameters, buffers and inputs; None leaves them."""
    autocast: torch.dtype | None = None
    gpu: bool = False
    """Attention with dropout is one operation there, and autocast has other types."""
    param_dtype: torch.dtype | None = None
    """FSDP2's: of parameters and inputs, in place of ``parameters``; buffers stay as that says."""

    def __str__(self) -> str:
        named = self.autocast or self.param_dtype or self.parameters
        name = str(named).removeprefix("torch.") if named is not None else "the model's precision"
        said = f"autocast to {name}" if self.autocast is not None else name
        return f"{said}, param_dtype" if self.param_dtype is not None else said


def peak_bytes(model: L.LightningModule, shapes: BatchShapes, samples: int, computing: Computing) -> int:
    """The most bytes that a micro-batch's training step holds at once, beside parameters, buffers and their gradients.

    The micro-batch itself counts. Nothing is computed and no memory taken; the model, its gradients and torch's random
    state stay as they were.

    Args:
        model: The module, its parameters with or without memory.
        shapes: The micro-batch's.
        samples: How many it has.
        computing: The precision.

    Raises:
        Unknown: where ``training_step`` returns no loss.
        Exception: whatever ``training_step`` raises; where it looks into its tensors, that is not known here.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    computed = computing.param_dtype or computing.parameters
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        held = {name: _like(p, computed) for name, p in model.named_parameters()}
        for parameter in held.values():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        held |= {name: _like(b, computing.parameters) for name, b in model.named_buffers()}
        live = LiveBytes(held.values())
        inside = {f"module.{name}": tensor for name, tensor in held.items()}
        with live, _logging_nothing(model), as_on_a_gpu(computing.gpu):
            batch = shapes.of(samples, computed)
            torch.func.functional_call(_Step(model, computing.autocast), inside, (batch,))
    return live.peak


class _Step(nn.Module):
    """Both passes, so that what is computed a second time in the backward pass finds the same parameters."""

    def __init__(self, module: L.LightningModule, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self._autocast = autocast

    def forward(self, batch: Any) -> None:
        step = self.module.training_step
        arguments = (batch, 0) if len(inspect.signature(step).parameters) > 1 else (batch,)
        with torch.autocast("cpu", self._autocast, enabled=self._autocast is not None):
            output = step(*arguments)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise Unknown("training_step returns no loss")
        loss.backward()  # type: ignore[no-untyped-call]


def _like(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    made = torch.empty(tensor.shape, dtype=dtype, device="cpu")
    return made.requires_grad_(tensor.requires_grad)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def _logging_nothing(model: L.LightningModule) -> Iterator[None]:
    """Lightning logs only while its loop runs."""
    names = ("log", "log_dict")
    for name in names:
        setattr(model, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
