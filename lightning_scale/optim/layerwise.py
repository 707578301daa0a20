"""What LARS and LAMB share: which layers adapt and decay, and the statistics of their ratios.

A subclass says what state a parameter has and turns buckets into a step; it sees neither devices nor layouts.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_scale.optim import groups
from lightning_scale.optim.backends.bucket import Bucket, Guard, LayerNorms
from lightning_scale.optim.backends.device import is_capturing, keep_captured
from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.layout import Layout

_NAMED = 5
"""Layers that a warning names."""
_LOOKED = "looked whether weights are zeros"
"""In the cache of a layout."""


class LayerwiseOptimizer(OptimizerBase):
    """Base of the optimizers whose step is scaled layer by layer.

    Attributes:
        skipped_steps: How many steps were left out for a NaN or Inf gradient, as a 0-d int64 tensor on the parameters'
            device. To read it waits for that device.
    """

    _groups_own: ClassVar[tuple[str, ...]] = ("layer_adaptation",)
    _pickled: ClassVar[tuple[str, ...]] = (*OptimizerBase._pickled, "_stats", "_rules")

    _stats: Sequence[tuple[tuple[str, ...], LayerNorms]] = ()
    _rules: Sequence[tuple[tuple[str, ...], float | Tensor, list[bool], tuple[float, float] | None]] = ()
    # On flat tensors: of the step before, and of the calls of this one so far.
    _before: Sequence[tuple[tuple[str, ...], LayerNorms]] = ()
    _new_stats: Sequence[tuple[tuple[str, ...], LayerNorms]] = ()
    _new_rules: Sequence[tuple[tuple[str, ...], float | Tensor, list[bool], tuple[float, float] | None]] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._looked: set[str] = set()
        super().__init__(*args, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_looked", set())

    # -- parameter groups ----------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as torch does.

        A group's own ``weight_decay`` or ``layer_adaptation`` (bool) holds for all of its parameters. Where it says
        nothing, ``exclude_1d=True`` leaves parameters of at most one dimension without decay and with ratio 1. The same
        ``weight_decay`` as the optimizer's says nothing, for wrappers write all defaults into their groups; where biases are to
        decay by just that, the group says ``exclude_1d=False``. A key that is not used brings a warning.

        Raises:
            TypeError: For a group that is no dict, and for an option that is no number.
            ValueError: For options out of range, for misspelled keys, for options of the whole optimizer
                (``max_grad_norm``, ``skip_nonfinite``, ``fused``, ``weight_rounding``), for sparse or complex parameters, and
                for ones that stochastic rounding does not go with.
        """
        super().add_param_group(param_group)

    def _complete_group(self, group: dict[str, Any]) -> None:
        exclude_1d = group.get("exclude_1d", self.defaults["exclude_1d"])
        own = "weight_decay" in group and not groups.same(group["weight_decay"], self.defaults["weight_decay"])
        group.setdefault("decay_1d", own or not exclude_1d)
        group.setdefault("layer_adaptation", None)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        groups.non_negative("eps", group["eps"])
        groups.bool_or_none("layer_adaptation", group["layer_adaptation"])
        group["weight_norm_clip"] = groups.bounds("weight_norm_clip", group["weight_norm_clip"])
        group["trust_ratio_clip"] = groups.bounds("trust_ratio_clip", group["trust_ratio_clip"])

    # -- the step ------------------------------------------------------------------------------------------------------

    def decide(self, gradients: Sequence[tuple[Layout, list[Tensor]]]) -> None:
        super().decide(gradients)
        self._before, self._new_stats, self._new_rules = self._stats, (), ()

    def _update(self, buckets: list[Bucket], decided: Guard) -> None:
        norms = self._apply(buckets, decided)
        self._warn_of_zeros(buckets, norms, decided)
        found = [(tuple(g.names), n) for g, n in zip(buckets, norms, strict=True)]
        rules = [(tuple(g.names), _copy(g.group["lr"]), g.adapts, _bounds(g.group)) for g in buckets]
        if decided.finite is not None:  # the host does not know whether the step was skipped
            before = dict(self._before if self._plan.flat else self._stats)
            found = [
                _unless_skipped(decided.finite, g.layout, *entry, before)
                for g, entry in zip(buckets, found, strict=True)
            ]
        if self._plan.flat:  # the step comes in several calls
            found, rules = [*self._new_stats, *found], [*self._new_rules, *rules]
            self._new_stats, self._new_rules = found, rules
        self._stats, self._rules = found, rules

    def _warn_of_zeros(self, buckets: list[Bucket], norms: list[LayerNorms], decided: Guard) -> None:
        """Warn once of layers that adapt and are all zero in the first step that they take, on all ranks alike.

        To look waits for the device, so each layer is looked at once.
        """
        zero: list[str] = []
        for b, found in zip(buckets, norms, strict=True):
            if _LOOKED in b.layout.cache or is_capturing(b.device):
                continue
            if decided.finite is not None and not bool(decided.finite):
                continue  # nothing was measured
            b.layout.cache[_LOOKED] = True
            clips = (b.group["weight_norm_clip"], b.group["trust_ratio_clip"])
            if self._looked.issuperset(b.names) or any(clip and clip[0] > 0 for clip in clips):
                continue
            layers = zip(b.layout.layers, b.adapts, found.weight.tolist(), strict=True)
            zero += [
                of.name
                for of, adapts, norm in layers
                if adapts and not norm and of.numel and of.name not in self._looked
            ]
            self._looked.update(b.names)
        if zero:
            more = f" and {len(zero) - _NAMED} more" if len(zero) > _NAMED else ""
            warnings.warn(
                f"{', '.join(map(repr, zero[:_NAMED]))}{more} began as zeros, as an adapter's second factor does:"
                f" {type(self).__name__} moves a layer by a share of its own norm, so one that begins at 0 hardly trains. Give"
                ' what begins as zeros a parameter group with "layer_adaptation": False.',
                stacklevel=2,
            )

    @abstractmethod
    def _apply(self, buckets: list[Bucket], decided: Guard) -> list[LayerNorms]:
        """Hand the buckets to the backends, which take the step, and return their norms in the same order."""

    # -- what users ask ------------------------------------------------------------------------------------------------

    def layer_stats(self) -> dict[str, LayerStats]:
        """Return the norms and the ratio of every parameter that the last step moved.

        Returns:
            A dict by the parameters' names (from ``named_parameters()``, else ``"<group>.<index>"``). The numbers are 0-d
            tensors on the parameter's device. The dict is empty before the first step, and a skipped step leaves the statistics
            of the one before.
        """
        return {
            name: LayerStats(*values)
            for names, norms in self._stats
            for name, *values in zip(
                names, norms.weight.unbind(), norms.update.unbind(), norms.ratio.unbind(), strict=True
            )
        }

    def layer_rules(self) -> dict[str, LayerRule]:
        """Return how the step of every parameter in `layer_stats` was scaled, in the same order."""
        return {
            name: LayerRule(lr, adapts, clip)
            for names, lr, adapting, clip in self._rules
            for name, adapts in zip(names, adapting, strict=True)
        }


def _bounds(group: dict[str, Any]) -> tuple[float, float] | None:
    """Return the bounds of the ratio that a step is scaled by."""
    return (0.0, 1.0) if group.get("trust_clip") == "larc" else group["trust_ratio_clip"]


def _copy(lr: float | Tensor) -> float | Tensor:
    """Return a rate as it is now, for schedulers fill tensors anew."""
    return lr.detach().reshape(()).clone() if isinstance(lr, Tensor) else lr


def _unless_skipped(
    finite: Tensor,
    layout: Layout,
    names: tuple[str, ...],
    norms: LayerNorms,
    before: Mapping[tuple[str, ...], LayerNorms],
) -> tuple[tuple[str, ...], LayerNorms]:
    """Return the statistics of this step, or of the last one where this one is skipped."""
    if names not in before:
        return names, norms
    chosen = [torch.where(finite.to(new.device), new, old) for new, old in zip(norms, before[names], strict=True)]
    if not is_capturing(norms.weight.device):
        return names, LayerNorms(*chosen)
    # Each replay begins with what the one before has left, so that all write into the same memory.
    for old, new in zip(before[names], chosen, strict=True):
        old.copy_(new)
        keep_captured(layout, old)
    return names, before[names]


class LayerStats(NamedTuple):
    """One whole parameter's norms and ratio in the last step: 0-d tensors on the parameter's device."""

    weight_norm: Tensor
    """‖w‖ before the step."""
    update_norm: Tensor
    """The norm that the ratio was divided by: ‖u‖ for LAMB, ‖g‖, ‖g + λ w‖ or ‖m‖ for LARS."""
    trust_ratio: Tensor
    """The factor that the step was scaled by; it is 1 for parameters without layer adaptation."""


class LayerRule(NamedTuple):
    """How one parameter's last step was scaled: known without waiting for the device."""

    lr: float | Tensor
    """The rate of the parameter's group in the last step that was tried; a 0-d tensor where the user gave one."""
    adapts: bool
    """Whether the parameter takes a ratio of its own; the ratio is 1 otherwise."""
    clip: tuple[float, float] | None
    """The bounds that the ratio is kept in: ``trust_ratio_clip``, or 0 to 1 with LARC's clip."""
