"""Runs a training step forward and backward on tensors without contents, and counts the memory that it would take."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_scale.plan.micro_batch import BatchShapes, Unknown


@dataclass(frozen=True)
class Computing:
    """In which precision a strategy computes layers, and on which kind of device."""

    parameters: torch.dtype | None = None
    """The dtype that floating-point parameters, buffers and inputs get; None leaves them as they are."""
    autocast: torch.dtype | None = None
    gpu: bool = False
    """Whether to compute as a GPU does: attention with dropout is one operation there, and autocast has other types."""
    param_dtype: torch.dtype | None = None
    """FSDP2's own dtype of parameters and inputs, in the place of ``parameters``; buffers keep that one."""

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
        shapes: The shapes of a micro-batch.
        samples: The number of samples in it.
        computing: The precision that layers are computed in.

    Raises:
        Unknown: where ``training_step`` returns no loss.
        Exception: whatever ``training_step`` raises; a step that looks into its tensors fails here.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    computed = computing.param_dtype or computing.parameters
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        held = {name: _like(p, computed) for name, p in model.named_parameters()}
        for parameter in held.values():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        held |= {name: _like(b, computing.parameters) for name, b in model.named_buffers()}
        live = LiveBytesCounter(held.values())
        inside = {f"module.{name}": tensor for name, tensor in held.items()}
        with live, _logging_nothing(model), computed_as_on_gpu(computing.gpu):
            batch = shapes.of(samples, computed)
            torch.func.functional_call(_Step(model, computing.autocast), inside, (batch,))
    return live.peak


class _Step(nn.Module):
    """Runs both passes as one call, so that what is computed again in the backward pass finds the same parameters."""

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
    """Within, the module's ``log`` does nothing, for Lightning logs only while its loop runs."""
    names = ("log", "log_dict")
    for name in names:
        setattr(model, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


class LiveBytesCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, counts the bytes of the storages that operations make, until nothing holds them; also of fake tensors.

    A storage that views share counts once. What an operation takes for itself and gives back before it ends is not seen.

    Args:
        held: Tensors whose memory is not counted, for they were there before.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """The bytes that are held now."""
        self.peak = 0
        """The most bytes that were held at once."""
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)  # torch keeps this object while any tensor uses the storage

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


_NAMES = (
    "softmax log_softmax softmin layer_norm group_norm cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss kl_div"
    " binary_cross_entropy_with_logits cosine_similarity cosine_embedding_loss softplus pow __pow__ __rpow__ exp expm1 log"
    " log10 log2 log1p reciprocal rsqrt sum prod cumsum cumprod norm dist cdist pdist renorm sinh cosh tan acos asin erfinv"
)
_IN_FLOAT32 = {getattr(home, name) for home in (torch, Tensor, F) for name in _NAMES.split() if hasattr(home, name)}
"""What CUDA's autocast computes in float32 (https://docs.pytorch.org/docs/stable/amp.html); the CPU's leaves most of it."""


@contextmanager
def computed_as_on_gpu(gpu: bool) -> Iterator[None]:
    """Within, autocast takes float32 where CUDA's does, and attention with dropout is one operation that keeps no matrix.

    Args:
        gpu: Whether the run is meant for GPUs; nothing is changed unless it is.
    """
    original = F.scaled_dot_product_attention

    def without_dropout(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more: Any
    ) -> Tensor:
        return original(query, key, value, attn_mask=attn_mask, **more)

    if not gpu:
        yield
        return
    F.scaled_dot_product_attention = without_dropout  # type: ignore[assignment]
    try:
        with _Float32():
            yield
    finally:
        F.scaled_dot_product_attention = original


class _Float32(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(item: Any) -> Any:
    low = isinstance(item, Tensor) and item.dtype in (torch.bfloat16, torch.float16)
    return item.float() if low else item
