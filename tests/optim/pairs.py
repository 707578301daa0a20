"""The library's optimizer and the reference side by side: the same weights, the same gradients, the same options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS

from .reference import Array, Options, Reference, lamb_step, lars_step

OPTIMIZERS = {"LAMB": (LAMB, lamb_step), "LARS": (LARS, lars_step)}
# What a user who writes nothing gets, where the two optimizers differ.
DEFAULTS: dict[str, dict[str, Any]] = {
    "LAMB": {"eps": 1e-6, "weight_decay": 0.01},
    "LARS": {"eps": 1e-8, "weight_decay": 0.0},
}
# Relative to the largest magnitude a quantity has had. A step rounds an element about 25 times (moments 5, norms and ratio 12,
# the step 4, the rest constants); the roundings of ten steps do not all add up: at worst 7 times 2^-24 was seen in float32.
FLOAT32_TOLERANCE = 32 * 2.0**-24
FLOAT64_TOLERANCE = 1e-12

STEPS = 10
# A matrix, a convolution, a bias, a scalar parameter, one element as vector and as matrix, and nothing at all.
SHAPES: list[tuple[int, ...]] = [(5, 7), (4, 3, 2, 2), (7,), (), (1,), (1, 1), (0, 3)]


def arrays_of(seed: int, shapes: list[tuple[int, ...]], scale: float = 1.0) -> list[np.ndarray]:
    """Normal numbers in these shapes, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [scale * rng.standard_normal(shape) for shape in shapes]


def rate(step: int) -> float:
    """A learning rate that no two neighbouring steps share."""
    return 0.02 * (1 + step % 3) / (1 + step)


def to_numpy(tensor: Tensor) -> Array:
    """Any tensor as a float64 array of the same shape (bfloat16 included)."""
    return tensor.detach().to(torch.float64).contiguous().numpy().copy()


def lay_out(values: Array, layout: str, dtype: torch.dtype) -> Tensor:
    """The values as a tensor in `layout`: contiguous, transposed, strided (gaps between elements) or channels_last."""
    tensor = torch.from_numpy(np.array(values)).to(dtype)
    if layout == "transposed" and tensor.ndim >= 2:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and tensor.ndim >= 1:
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 7.0, dtype=dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "channels_last" and tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.clone()


class Pair:
    """An optimizer of the library and the reference, started from the same weights.

    Args:
        name: "LAMB" or "LARS".
        groups: (arrays, the group's own options) for each group.
        options: keywords for both; `fused`, `master_weights` and `skip_nonfinite` go to the library alone.
        dtype: of the library's parameters, or of each of them. The reference starts from the values as this dtype holds them.
        layout: see `lay_out`.
        store: see `Reference`.
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[tuple[Sequence[NDArray[Any]], dict[str, Any]]],
        options: dict[str, Any],
        dtype: torch.dtype | Sequence[torch.dtype] = torch.float64,
        layout: str = "contiguous",
        **reference_arguments: Any,
    ) -> None:
        kind, one_step = OPTIMIZERS[name]
        flat = [array for arrays, _ in groups for array in arrays]
        dtypes = [dtype] * len(flat) if isinstance(dtype, torch.dtype) else dtype
        self.parameters = [nn.Parameter(lay_out(a, layout, d)) for a, d in zip(flat, dtypes, strict=True)]
        tensors = iter(self.parameters)
        param_groups = [{"params": [next(tensors) for _ in arrays], **own} for arrays, own in groups]
        self.optimizer = kind(param_groups, **{"lr": 1e-3, **options})
        library_only = {"fused", "master_weights", "skip_nonfinite"}
        base = Options(**{**DEFAULTS[name], **{k: v for k, v in options.items() if k not in library_only}})
        tensors = iter(self.parameters)
        held = [([to_numpy(next(tensors)) for _ in arrays], own) for arrays, own in groups]
        self.reference = Reference(one_step, base, held, **reference_arguments)
        self.layout = layout
        self.largest: dict[tuple[int, str], float] = {}

    def step(self, gradients: Sequence[NDArray[Any] | None], **now: Any) -> None:
        """One step of both; `now` overrides options of every group for this step."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else lay_out(gradient, self.layout, parameter.dtype)
        for group in self.optimizer.param_groups:
            group.update(now)
        self.step_as_they_are(**now)

    def step_as_they_are(self, **now: Any) -> None:
        """One step of both with the gradients and options that the library's parameters and groups have."""
        self.note_magnitudes()
        self.optimizer.step()
        self.reference.step([None if p.grad is None else to_numpy(p.grad) for p in self.parameters], **now)
        self.note_magnitudes()

    def note_magnitudes(self) -> None:
        """Remember the largest magnitude of every quantity: what cancels leaves the rounding of what was there before."""
        for index, weight in enumerate(self.reference.weights):
            seen = {"weights": weight, **self.reference.states[index]}
            result = self.reference.last[index]
            if result is not None:
                seen |= {"weight_norm": np.array(result.weight_norm), "update_norm": np.array(result.update_norm)}
            for key, value in seen.items():
                largest = float(np.abs(value).max(initial=0.0))
                self.largest[index, key] = max(largest, self.largest.get((index, key), 0.0))

    def weights(self) -> list[Array]:
        """What the optimizer holds as the true weights: the master copy where there is one."""
        return [to_numpy(self.optimizer.state[p].get("master", p)) for p in self.parameters]

    def check(self, tolerance: float) -> None:
        """Weights, moments, step counts and `layer_stats()` agree; `tolerance` is relative to the largest magnitudes."""
        for index, (parameter, got) in enumerate(zip(self.parameters, self.weights(), strict=True)):
            self.compare(index, "weights", got, self.reference.weights[index], tolerance)
            expected, state = self.reference.states[index], self.optimizer.state[parameter]
            for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                # Without momentum there is nothing to remember, and the library keeps nothing.
                if key in expected and not (key == "momentum_buffer" and key not in state and self.memoryless()):
                    self.compare(index, key, to_numpy(state[key]), expected[key], tolerance)
            if "exp_avg" in expected:
                assert float(state["step"]) == expected["step"], f"step of parameter {index}"
        assert int(self.optimizer.skipped_steps) == self.reference.skipped
        self.check_stats(tolerance)

    def memoryless(self) -> bool:
        """No group of this LARS has momentum."""
        return all(group["momentum"] == 0 for group in self.optimizer.param_groups)

    def check_stats(self, tolerance: float) -> None:
        """`layer_stats()` holds the reference's three numbers for every parameter stepped last, as 0-d tensors."""
        stats = self.optimizer.layer_stats()
        names = [f"{g}.{i}" for g, group in enumerate(self.optimizer.param_groups) for i in range(len(group["params"]))]
        for index, name in enumerate(names):
            result = self.reference.last[index]
            if result is None or self.parameters[index].grad is None:
                continue
            assert all(isinstance(value, Tensor) and value.ndim == 0 for value in stats[name])
            self.compare(
                index, "weight_norm", to_numpy(stats[name].weight_norm), np.array(result.weight_norm), tolerance
            )
            self.compare(
                index, "update_norm", to_numpy(stats[name].update_norm), np.array(result.update_norm), tolerance
            )
            # A quotient carries the relative errors of both norms.
            condition = 1.0
            for key, value in (("weight_norm", result.weight_norm), ("update_norm", result.update_norm)):
                condition += self.largest[index, key] / value if value else 0.0
            ratio = float(stats[name].trust_ratio)
            assert abs(ratio - result.trust_ratio) <= tolerance * condition * result.trust_ratio, f"ratio of {name}"

    def compare(self, index: int, key: str, got: Array, expected: Array, tolerance: float) -> None:
        """Every element within `tolerance` times the largest magnitude that this quantity has had."""
        allowed = tolerance * self.largest.get((index, key), 0.0)
        np.testing.assert_allclose(got, expected, rtol=0, atol=allowed, err_msg=f"{key} of parameter {index}")
