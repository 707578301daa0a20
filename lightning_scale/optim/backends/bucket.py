"""What an optimizer hands to a backend: tensors of one kind, where their elements live, and what the step does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_scale.optim.backends.device import constant
from lightning_scale.optim.layout import LayerInfo, Layout, matches
from lightning_scale.optim.state.moments import CODES, Moment, StoredMoment, in_eight_bits, moments, stored_moment


class Backend(Enum):
    """Which implementation takes a step. The reference is the truth that the others are held to."""

    REFERENCE = "plain torch operations"
    CPU = "numba's kernels"
    TRITON = "Triton kernels"


class IncompleteStep(RuntimeError):
    """A step that has left some weights as they were; the parameters are no longer of one step."""


@dataclass(frozen=True)
class Guard:
    """What all gradients of a step together decide. Nothing here is on the host, so that no step waits for the device.

    Args:
        finite: 0-d bool, False where the step must leave weights and state as they are; ``None``: not tested.
        clip: 0-d factor (at most 1) for all gradients (``max_grad_norm``); ``None``: not clipped.
    """

    finite: Tensor | None = None
    clip: Tensor | None = None


class LayerNorms(NamedTuple):
    """Of each layer of a bucket, 1-D tensors of length ``len(layout.layers)``."""

    weight: Tensor
    update: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class FirstPass:
    """What is known of a bucket before its ratios, and how its step is finished with them.

    Args:
        at: [tensors] addresses of params, weights, grads and each kind of state, where somebody has gathered them.
        norms: [2, layers] float64: this rank's share of ‖w‖, and of the norm that the ratio divides by.
        second: Takes the layers' ratios (1-D, in compute dtype) and finishes the step.
    """

    norms: Tensor
    second: Callable[[Tensor], None]


@dataclass(frozen=True)
class TrustRatio:
    """How a layer's ratio is made of its norms.

    Args:
        adapt: For each layer, whether it takes a ratio of its own (1 otherwise); 1-D bool tensor on the bucket's device.
        weight_norm_clip: φ's bounds on the weight norm.
        clip: Bounds on the ratio.
        larc: Whether the ratio is then min(ratio / lr, 1).
    """

    adapt: Tensor
    weight_norm_clip: tuple[float, float] | None
    clip: tuple[float, float] | None
    larc: bool = False


Addresses = NDArray[np.int64]


def addresses(tensors: Sequence[Tensor | None]) -> Addresses:
    """[tensors]: where each begins; 0 for none."""
    try:
        return np.array(list(map(Tensor.data_ptr, tensors)), np.int64)  # type: ignore[arg-type]
    except TypeError:
        return np.array([0 if t is None else t.data_ptr() for t in tensors], np.int64)


@dataclass
class Scratch:
    """The memory that float32 updates wait in between the two passes of a step on a CPU: the optimizer's, from step to step.

    New memory would be cleared by the system at every step, which takes as long as writing it.
    """

    _held: dict[int, Tensor] = field(default_factory=dict)

    def take(self, place: int, elements: int) -> Tensor:
        """1-D float32 of any content: of one place the same memory again; it grows to the largest size asked for."""
        if place not in self._held or len(self._held[place]) < elements:
            self._held[place] = torch.empty(elements, dtype=torch.float32, device="cpu")
        return self._held[place]


@dataclass
class Bucket:
    """Local tensors of one parameter group that have a gradient, of one device and dtype, with one backend.

    Args:
        group: The parameter group, for its options.
        names: Of the layers.
        layout: Where the layers' elements lie.
        backend: What takes the step.
        params: This rank's tensors.
        weights: What the step is computed on: the parameters themselves, of any dtype, or their float32 master copies.
        grads: The parameters' own, of any dtype: read only.
        states: Of each parameter.
        in_order: Whether moments lie in row-major order whatever the parameter's; else as the parameter does.
        eight_bit_from: From which size of a layer on its moments are in 8 bits.
        scratch: See there.
        place: Which of its memory the updates wait in.
        norms: [2, layers] float64: this rank's own ‖w‖ and ‖g‖ before any clip, where the look at all gradients has found them.
        rounding_seed: Of weights in bfloat16 that are rounded stochastically: see `lightning_scale.optim.backends.rounding`.
    """

    group: dict[str, Any]
    names: tuple[str, ...]
    layout: Layout
    backend: Backend
    params: list[Tensor]
    weights: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Tensor]]
    in_order: bool
    eight_bit_from: float
    scratch: Scratch = field(default_factory=Scratch)
    place: int = 0
    norms: Tensor | None = None
    at: dict[str, Addresses] = field(default_factory=dict)
    rounding_seed: int | None = None

    @property
    def device(self) -> torch.device:
        return self.params[0].device

    @cached_property
    def compute(self) -> torch.dtype:
        """What steps are computed in: float32, or float64 for float64 parameters."""
        return torch.float64 if self.weights[0].dtype == torch.float64 else torch.float32

    @cached_property
    def lr(self) -> Tensor:
        """0-d, in compute dtype, on the bucket's device."""
        lr = self.group["lr"]
        if isinstance(lr, Tensor):
            return lr.to(self.device, self.compute).reshape(())
        # Filled there, where a number would otherwise be brought by a copy that the host waits for.
        return torch.full((), float(lr), dtype=self.compute, device=self.device)

    @property
    def rate(self) -> float:
        """The learning rate as a number of the host's, which waits for the device of a tensor."""
        return float(self.group["lr"])

    @cached_property
    def weight_decay(self) -> list[float]:
        """λ of each layer."""
        decay = float(self.group["weight_decay"])
        return self._of_layers("decay", 0.0, decay if self.group.get("decay_1d", True) else 0.0, decay)

    @cached_property
    def adapts(self) -> list[bool]:
        """Of each layer: whether it takes a ratio of its own."""
        own = self.group["layer_adaptation"]
        one, more = (not self.group["exclude_1d"], True) if own is None else (bool(own), bool(own))
        return self._of_layers("adapts", False, one, more)

    @cached_property
    def trust(self) -> TrustRatio:
        """How the layers' ratios are made."""
        if self.device.type == "cpu":
            adapt = self.layout.once(
                ("adapt", tuple(self.adapts)), lambda: torch.tensor(self.adapts, dtype=torch.bool, device="cpu")
            )
        else:
            adapt = constant(self.layout, "adapt", self.adapts, torch.bool, self.device)
        larc = self.group.get("trust_clip") == "larc"
        return TrustRatio(adapt, self.group["weight_norm_clip"], self.group["trust_ratio_clip"], larc)

    def _of_layers(self, name: str, excluded: Any, one: Any, more: Any) -> list[Any]:
        """Of each layer: ``excluded`` where the group names it so, else ``one`` for at most one dimension, and ``more``."""
        patterns = tuple(self.group.get("exclude") or ())  # of a file it may be a list

        def of(layer: LayerInfo) -> Any:
            return excluded if matches(layer.name, patterns) else more if layer.ndim > 1 else one

        return self.layout.once((name, one, more, patterns), lambda: list(map(of, self.layout.layers)))

    @cached_property
    def steps(self) -> list[Tensor]:
        """The step counts, 0-d float32, one for each local tensor; empty where none are kept."""
        return [state["step"] for state in self.states if "step" in state]

    @cached_property
    def quantized(self) -> tuple[bool, ...]:
        """Of each layer, whether its moments are in 8 bits."""
        smallest = self.eight_bit_from if self.remembers and self.compute == torch.float32 else float("inf")
        return self.layout.once(
            ("coded", smallest),
            lambda: tuple(in_eight_bits(layer, torch.float32, smallest) for layer in self.layout.layers),
        )

    @cached_property
    def remembers(self) -> tuple[str, ...]:
        """Which moments every parameter has."""
        return tuple(key for key in CODES if self.states and all(key in state for state in self.states))

    @cached_property
    def moments(self) -> dict[str, StoredMoment]:
        """The moments as they stand in the state, by their keys."""
        return {
            key: stored_moment(key, self.layout, self.states, self.compute, self.eight_bit_from)
            for key in self.remembers
        }

    def check_state(self, needs: Sequence[str]) -> None:
        """Raises ValueError where a kernel would read or write what is not there: for a state of other dtypes or sizes."""
        for state, p in zip(self.states, self.params, strict=True):
            for key in needs:
                value = state.get(key)
                there = isinstance(value, Tensor) and value.device == p.device
                if not there or (key == "step" and (value.dtype, value.numel()) != (torch.float32, 1)):  # type: ignore[union-attr]
                    raise ValueError(
                        f"{key} of a parameter of shape {tuple(p.shape)} is missing in the state, or not what belongs there:"
                        " load a state_dict that the same kind of optimizer gave."
                    )
        for key in self.remembers:
            self._check_moment(key)

    def _check_moment(self, key: str) -> None:
        if self.in_order:
            self.moments_of_runs(key)  # which lays it out in order, too
            return
        for state, p in zip(self.states, self.params, strict=True):
            if state[key].dtype != self.compute or state[key].shape != p.shape or state[key].stride() != p.stride():
                self.moments_of_runs(key)
                raise ValueError(
                    f"{key} of a parameter of shape {tuple(p.shape)} has the shape {tuple(state[key].shape)}: load a state_dict"
                    " that the same optimizer gave for the same parameters."
                )

    def moments_of_runs(self, key: str) -> list[Moment]:
        """One kind of moment of every run of the layout, as views."""
        return moments(key, self.layout, self.states, self.compute, self.eight_bit_from)
