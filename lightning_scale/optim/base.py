"""What all optimizers share: parameter groups, the look at all gradients before a step, and torch.optim's contract.

A subclass says what state a parameter has, and hands buckets of tensors to the backends, which compute the step.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim import groups
from lightning_scale.optim.backends.bucket import Backend, Bucket, Guard
from lightning_scale.optim.backends.choice import backend_of, check_fused
from lightning_scale.optim.backends.dispatch import refuse_incomplete
from lightning_scale.optim.backends.norms import guard, layer_squares, squares_total
from lightning_scale.optim.dtensor import is_sharded, local
from lightning_scale.optim.groups import check_group_keys
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.self_check import triton_is_right, try_waiting
from lightning_scale.optim.state.reset import reset_bias_correction, reset_moments
from lightning_scale.optim.state.sharded_moments import refuse_codes
from lightning_scale.optim.state.state_dict import keep_state_dtypes
from lightning_scale.optim.state.whole import mended
from lightning_scale.optim.step_plan import StepPlan, compute_dtype, refuse_unsupported

OWN_STATE = ("skipped_steps", "weight_rounding_seed")
"""What stands in a ``state_dict`` beside the parameters' state and the groups."""


class OptimizerBase(Optimizer):
    """Base of the optimizers: one test and one clip over the gradients of all groups before each step.

    Attributes:
        skipped_steps: How many steps were left out for a NaN or Inf gradient, as a 0-d int64 tensor on the parameters'
            device. To read it waits for that device.
    """

    skipped_steps: Tensor

    _groups_own: ClassVar[tuple[str, ...]] = ()
    """The options that a group may have and the constructor does not."""
    _pickled: ClassVar[tuple[str, ...]] = (
        "max_grad_norm",
        "skip_nonfinite",
        "fused",
        "weight_rounding",
        "weight_rounding_seed",
        "skipped_steps",
        "eight_bit_except",
        "_unused",
    )
    """The attributes beside torch's that a copied or unpickled optimizer has, too."""
    _waits: ClassVar[bool] = False
    """Whether the Triton kernels of this optimizer wait for one another inside a launch."""
    _backends: ClassVar[tuple[Backend, ...]] = (Backend.REFERENCE, Backend.CPU, Backend.TRITON)
    """Those that have a file of its algorithm."""
    _in_order: ClassVar[bool] = False
    """Whether moments lie in row-major order, whatever the parameters' memory format: 8-bit ones do."""
    _eight_bit_from: ClassVar[float] = math.inf
    """The number of elements from which on a layer's moments are kept in 8 bits."""
    eight_bit_except: tuple[str, ...] | None = None
    """Patterns of the names of parameters whose moments are not."""

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        fused: bool | None,
        weight_rounding: str = "nearest",
        weight_rounding_seed: int = 0,
    ) -> None:
        groups.positive("max_grad_norm", max_grad_norm)
        groups.rounding(weight_rounding, weight_rounding_seed)
        check_fused(fused)
        # Over all groups together, so they are the optimizer's and no group's.
        self.max_grad_norm = max_grad_norm
        self.skip_nonfinite = skip_nonfinite
        self.fused = fused
        self.weight_rounding = weight_rounding
        self.weight_rounding_seed = weight_rounding_seed
        self._unused: dict[str, None] = {}  # keys of groups, in order
        super().__init__(params, defaults)
        self._warn_of_unused(())
        if weight_rounding == "stochastic" and not any(
            p.dtype == torch.bfloat16 for group in self.param_groups for p in group["params"]
        ):
            warnings.warn(
                'weight_rounding="stochastic" is not used: none of the parameters is bfloat16. Give the optimizer a model in'
                " bfloat16, or leave weight_rounding out.",
                stacklevel=3,
            )
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device="cpu")
        self._plan = self._new_plan()
        groups.check_patterns("eight_bit_except", self.eight_bit_except, self.param_groups)
        if "exclude" in defaults:
            groups.check_patterns("exclude", groups.patterns("exclude", defaults["exclude"]), self.param_groups)
        self._decided: list[Guard | None] = []  # by `decide`, for all calls of a step
        self._lost_layouts = False  # of flat tensors: a copy has others, which say nothing of layers

    # -- parameter groups ----------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as torch does. A key that is not used brings a warning.

        Raises:
            TypeError: For a group that is no dict, and for an option that is no number.
            ValueError: For options out of range, for misspelled keys, for options of the whole optimizer
                (``max_grad_norm``, ``skip_nonfinite``, ``fused``, ``weight_rounding``), for sparse or complex parameters, and
                for ones that stochastic rounding does not go with.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group is a dict with the key 'params', not {type(param_group).__name__}.")
        whole = {key: getattr(self, key) for key in groups.OPTIMIZERS_OWN}
        unused = check_group_keys(param_group, (*self.defaults, *self._groups_own), type(self).__name__, whole)
        param_group = {k: v for k, v in param_group.items() if k not in whole}  # the caller's own stays as it is
        self._complete_group(param_group)
        super().add_param_group(param_group)
        known, self._unused = self._unused, {**self._unused, **dict.fromkeys(unused)}
        if "_plan" in self.__dict__:
            self._plan.forget()  # what all parameters together decide may be otherwise now
            self._warn_of_unused(known)
        group = self.param_groups[-1]
        try:
            if "exclude" in self.defaults:
                self._check_exclude(group)
            self._check_group(group)
            for p in group["params"]:
                refuse_unsupported(p)
            if self.weight_rounding == "stochastic":
                _refuse_rounding(group["master_weights"], group["params"])
        except Exception:
            self.param_groups.pop()
            raise

    def _check_exclude(self, group: dict[str, Any]) -> None:
        group["exclude"] = groups.patterns("exclude", group["exclude"])
        if group["exclude"] != groups.patterns("exclude", self.defaults["exclude"]):  # these may match in another group
            groups.check_patterns("exclude", group["exclude"], [group])

    def _warn_of_unused(self, known: Iterable[str]) -> None:
        """Warn once of the keys that groups have and nobody reads, but for those that are known already."""
        new = [key for key in self._unused if key not in known]
        if new:
            name = type(self).__name__
            warnings.warn(f"{name} does not use these keys of a parameter group: {', '.join(new)}.", stacklevel=3)

    def _complete_group(self, group: dict[str, Any]) -> None:
        """Add to a group what follows from the keys that its user has written, and from those left out."""

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise a ValueError or a TypeError for an option that is out of range."""
        groups.non_negative("lr", group["lr"])
        groups.non_negative("weight_decay", group["weight_decay"])

    # -- the step ------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # torch.compiler.disable() imports the compiler, which takes seconds, when this file is imported; this one at the first call.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step on every parameter that has a gradient. Gradients are left as they are.

        ``torch.compile`` leaves this to the kernels that are used without it, also inside of a function that it compiles.

        Args:
            closure: A function that evaluates the model anew and returns the loss.

        Raises:
            IncompleteStep: Where an earlier step on a GPU has left weights as they were; see `refuse_incomplete`.
        """
        loss = None
        self._check_layouts()
        for layout in self._plan.layouts():
            refuse_incomplete(layout)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        buckets = [
            bucket
            for number, group in enumerate(self.param_groups)
            for bucket in self._plan.buckets(group, number, self.state, self._new_state, self._backend_of, self.fused)
        ]
        if self.weight_rounding == "stochastic":
            self._round_stochastically(buckets)
        if buckets:
            decided = self._decide(buckets)
            if decided is not None:
                self._update(buckets, decided)
                _count_versions(buckets)
        return loss

    def _round_stochastically(self, buckets: list[Bucket]) -> None:
        """Have the buckets' weights in bfloat16 rounded so.

        Raises:
            ValueError: Where parameters became float16, or got masters, after the optimizer was made.
        """
        for b in buckets:
            _refuse_rounding(any("master" in own for own in b.states), b.params)
            b.rounding_seed = self.weight_rounding_seed if any(w.dtype == torch.bfloat16 for w in b.weights) else None

    def _backend_of(self, p: Tensor) -> Backend:
        """Return the backend that takes a parameter's step: the reference where the device's own has no file of the algorithm."""
        if self.fused and Backend.TRITON not in self._backends:
            raise ValueError(f"{type(self).__name__} has no Triton kernels: leave fused=True out.")
        backend = backend_of(
            self.fused, p, self._in_order, lambda: Backend.TRITON in self._backends and triton_is_right(self, p)
        )
        if backend not in self._backends:
            return Backend.REFERENCE
        if self.fused and backend is Backend.TRITON and p.device.type == "cuda":
            try_waiting(self, p)
        return backend

    def _decide(self, buckets: list[Bucket]) -> Guard | None:
        """Test all gradients and find their clip; return None where the step is skipped and the host may know it."""
        if self._plan.flat:
            if not self._decided:
                raise RuntimeError(
                    "a step on flat tensors was not begun with decide(): let the strategy take the steps."
                )
            return self._decided[0]
        totals: list[tuple[Layout, Tensor]] = []
        if self.skip_nonfinite or self.max_grad_norm is not None:
            self._look(buckets)
            if all(b.backend is Backend.CPU and b.layout.all_reduce is None for b in buckets):
                return self._decide_on_host(buckets)
            totals = [(b.layout, _total(b)) for b in buckets if b.backend is not Backend.REFERENCE]
        result = guard(
            [(b.layout, b.grads) for b in buckets if b.backend is Backend.REFERENCE],
            totals=totals,
            test_finite=self.skip_nonfinite,
            max_grad_norm=self.max_grad_norm,
        )
        return self._counted(result)

    def _decide_on_host(self, buckets: list[Bucket]) -> Guard | None:
        """`_decide` where all gradients lie whole on this process's CPU: with Python's numbers, for a small model's step takes
        less time than a handful of torch's operations.
        """
        total = math.fsum(float(_squares(b).sum()) for b in buckets)
        if self.skip_nonfinite and not math.isfinite(total):
            self.skipped_steps += 1
            return None
        if self.max_grad_norm is None:
            return Guard()
        norm = math.sqrt(total)
        factor = self.max_grad_norm / (max(norm, self.max_grad_norm) if norm == norm else norm)
        return Guard(None, torch.tensor(factor, dtype=torch.float64, device="cpu"))

    def _counted(self, result: Guard) -> Guard | None:
        """Count the step where it is skipped, and return None then if the host may know that."""
        if result.finite is None:
            return result
        if self.skipped_steps.device != result.finite.device:
            self.skipped_steps = self.skipped_steps.to(result.finite.device)
        self.skipped_steps += ~result.finite
        if result.finite.device.type != "cpu":
            return result
        return Guard(None, result.clip) if bool(result.finite) else None  # on a CPU to look costs nothing

    def _look(self, buckets: list[Bucket]) -> None:
        """Fill in `Bucket.norms` where a step needs both norms anyway, so that gradients are read once less."""

    @abstractmethod
    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step.

        Args:
            group: The parameter's group, for its options.
            weight: A tensor of the shape, device and dtype that the step is computed on: of this rank's share.
            layout: Which layers' elements that tensor holds.
        """

    def _new_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return `_init_state`; with a step count, too, where random numbers follow from it."""
        state = self._init_state(group, weight, layout)
        if self.weight_rounding == "stochastic" and "step" not in state:
            return {"step": torch.zeros((), dtype=torch.float32, device=weight.device), **state}
        return state

    @abstractmethod
    def _update(self, buckets: list[Bucket], decided: Guard) -> None:
        """Hand the buckets to the backends, which take the step."""

    # -- what strategies with flat tensors call ------------------------------------------------------------------------

    def attach_layouts(self, layouts: Mapping[Tensor, Layout]) -> None:
        """Say which layers' elements lie in the flat tensors that stand in the parameters' place.

        From now on every step begins with `decide`, and may come in several calls of ``step()``, each with some of the
        flat tensors in ``param_groups``; every call takes one collective, on all ranks, for the norms of all its layers.

        Args:
            layouts: The layout of each flat tensor, which is 1-D. It describes that one tensor, and lists the same layers on all
                ranks.
        """
        for flat, layout in layouts.items():
            assert flat.dim() == 1 and len(layout.tensor_numels) == 1, "a layout of one flat tensor"
        self._plan.flat.update(layouts)
        self._lost_layouts = False

    def attach_pieces(self, pieces: Sequence[Tensor], layout: Layout) -> None:
        """Say where layers lie in pieces of a flat tensor, which stand in its place in ``param_groups`` for one ``step()``.

        Args:
            pieces: All of them, with their state made. The first one is always the same tensor for one flat tensor.
            layout: The layout of them together, which lists the same layers on all ranks.
        """
        self._plan.flat.update(dict.fromkeys(pieces, layout))

    def _check_layouts(self) -> None:
        if self._lost_layouts:
            raise RuntimeError(
                f"this {type(self).__name__} is a copy of one that stepped flat tensors (ZeRO's), and does not know which layers"
                " lie in its own: it would take each for one layer. Let the strategy make the optimizer and load a"
                " checkpoint, or call attach_layouts() with the copy's tensors."
            )

    @torch.no_grad()
    def init_state(self, group: dict[str, Any], flat: Tensor) -> None:
        """Make the state of a flat tensor of a group now, before its first step, unless it has one."""
        self._check_layouts()
        if not self.state[flat]:
            self.state[flat].update(self._new_state(group, flat, self._plan.flat[flat]))

    @torch.no_grad()
    def decide(self, gradients: Sequence[tuple[Layout, list[Tensor]]]) -> None:
        """Before the first call of a step: test and clip over all gradients together (at most one collective).

        Args:
            gradients: This rank's gradients of every flat tensor, each with a layout that says where they lie in it.
        """
        self._check_layouts()
        result = guard(
            gradients,
            test_finite=self.skip_nonfinite,
            max_grad_norm=self.max_grad_norm,
            by_kernels=self.fused is not False,
        )
        self._decided = [self._counted(result)]

    # -- what users ask ------------------------------------------------------------------------------------------------

    def reset_bias_correction(self) -> None:
        """Start the step count of the bias correction again (as BERT's second stage does); moments are kept."""
        reset_bias_correction(self)

    def reset_moments(self) -> None:
        """Set first and second moments, or the momentum, to zero."""
        reset_moments(self)

    def refuse_incomplete(self) -> None:
        """Raise IncompleteStep where a Triton kernel of an earlier step has left weights as they were. This waits for GPUs.

        ``step()`` asks the same without waiting, about the steps that the device has ended by then. Replays of a CUDA graph do
        not ask.
        """
        for layout in self._plan.layouts():
            for device in layout.gave_up:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            refuse_incomplete(layout)

    # -- torch.optim's contract ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return torch's dict, with ``skipped_steps`` beside ``state`` and ``param_groups``.

        With ``weight_rounding="stochastic"`` ``weight_rounding_seed`` stands there, too. Where parameters are sharded (FSDP2),
        both are also in the first group: torch.distributed.checkpoint keeps only these two.
        """
        self.refuse_incomplete()
        found, own = super().state_dict(), self.own_state()
        if any(is_sharded(p) for group in self.param_groups for p in group["params"]):
            found["param_groups"][0].update({key: int(value) for key, value in own.items()})
        return {**found, **own}

    def own_state(self) -> dict[str, Any]:
        """Return what `state_dict` has beside ``state`` and ``param_groups``: one of the keys of `OWN_STATE`, or both."""
        seed = {"weight_rounding_seed": self.weight_rounding_seed} if self.weight_rounding == "stochastic" else {}
        return {"skipped_steps": self.skipped_steps, **seed}

    def load_own_state(self, saved: Mapping[str, Any]) -> None:
        """Restore what `own_state` gave; what is not there stays."""
        if "skipped_steps" in saved:
            self.skipped_steps = torch.as_tensor(saved["skipped_steps"]).clone()
        if self.weight_rounding == "stochastic":
            self.weight_rounding_seed = int(saved.get("weight_rounding_seed", self.weight_rounding_seed))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore every bit of what ``state_dict()`` gave: state keeps its own dtype, whatever the parameters' is.

        In the whole state of a sharded run there may be blocks of 8-bit codes that an edge between ranks had cut in two; those
        get one scale, and are rounded anew.

        The state of an older version is taken, too, of an optimizer in another precision (8-bit optimizers round moments to 8
        bits), and of the same kind of optimizer of another library: see `lightning_scale.optim.state.foreign`. Options that its
        groups lack are this optimizer's own.

        Raises:
            ValueError: Before anything is loaded, for state that means something else, or has other shapes.
        """
        whole = {k: mended(own) if isinstance(own, Mapping) else own for k, own in state_dict["state"].items()}
        state_dict = {**state_dict, "state": whole}
        if self.weight_rounding == "stochastic":
            masters = any(isinstance(own, Mapping) and "master" in own for own in whole.values())
            _refuse_rounding(masters or any(group.get("master_weights") for group in state_dict["param_groups"]), ())
        with keep_state_dtypes(self):
            super().load_state_dict(state_dict)
        first = self.param_groups[0]
        in_group = {key: first.pop(key) for key in OWN_STATE if key in first}
        self.load_own_state({**in_group, **state_dict})
        if self.weight_rounding == "stochastic":
            for p, kept in self.state.items():  # of a run that did not count
                if isinstance(p, Tensor) and kept and "step" not in kept:
                    kept["step"] = torch.ones((), dtype=torch.float32, device=p.device)

    def _loaded_state(self, p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """Turn the state of a parameter that ``state_dict()`` gave into the form that steps take it in."""
        refuse_codes(type(self).__name__, p, state)
        return state

    def _expected_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        """Return the state that a parameter has before its first step, on the meta device."""
        dtype = compute_dtype(p) if group["master_weights"] else p.dtype
        # (A flat tensor's group has the names of all of its layers, and its layout knows them.)
        named = zip(group["params"], group.get("param_names", ()), strict=False)
        layout = self._plan.layout_of(p, next((name for q, name in named if q is p), ""))
        return self._new_state(group, torch.empty_like(local(p), dtype=dtype, device="meta"), layout)

    def __getstate__(self) -> dict[str, Any]:
        lost = self._lost_layouts or bool(self._plan.flat)
        return {**super().__getstate__(), **{key: getattr(self, key) for key in self._pickled}, "_lost_layouts": lost}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        flat = self._plan.flat if "_plan" in self.__dict__ else {}  # load_state_dict comes here, too
        self._plan = self._new_plan()
        self._plan.flat.update(flat)
        self._decided = []
        if "exclude" in self.defaults:
            for group in self.param_groups:
                group.setdefault("exclude", None)  # of a checkpoint from before there was this
        self.__dict__.setdefault("_unused", {})
        self.__dict__.setdefault("weight_rounding", "nearest")  # of a pickle from before there was this
        self.__dict__.setdefault("weight_rounding_seed", 0)

    def _new_plan(self) -> StepPlan:
        return StepPlan(self._in_order, self._eight_bit_from, self.eight_bit_except or ())


def _refuse_rounding(masters: bool, params: Iterable[Tensor]) -> None:
    """Raise a ValueError for what stochastic rounding does not go with."""
    if masters:
        raise ValueError(
            'weight_rounding="stochastic" is for bfloat16 weights that have no float32 masters, and here master_weights=True'
            " keeps or has kept some: leave one of the two out."
        )
    if any(p.dtype == torch.float16 for p in params):
        raise ValueError(
            'weight_rounding="stochastic" is for bfloat16, and float16 parameters are rounded to nearest only: train in'
            " bfloat16, or leave weight_rounding out and write master_weights=True."
        )


def _count_versions(buckets: list[Bucket]) -> None:
    """Let autograd know that kernels, which write to addresses, have changed the weights."""
    for b in buckets:
        if b.backend is Backend.REFERENCE:
            continue
        changed = b.weights if b.weights[0] is b.params[0] else [*b.weights, *b.params]
        try:
            torch.autograd.graph.increment_version(changed)
        except RuntimeError:  # some were made in inference mode, and have no versions
            torch.autograd.graph.increment_version([t for t in changed if not t.is_inference()])


def _squares(bucket: Bucket) -> Tensor:
    """[layers] float64: Σ g² of gradients on a CPU, from the look at both norms where there was one."""
    if bucket.norms is not None:
        return bucket.norms[1].square()
    return layer_squares(bucket.layout, bucket.grads, bucket.at.get("grads"))


def _total(bucket: Bucket) -> Tensor:
    """Return what `guard` has to know about the gradients of a bucket that kernels take."""
    if bucket.backend is Backend.CPU:
        return squares_total(_squares(bucket))
    from lightning_scale.optim.backends.triton.sums import gradient_total

    return gradient_total(bucket.layout, bucket.grads)
