"""What all optimizers share: groups, the guard over all gradients, torch.optim's contract.

A subclass gives its state and turns what was gathered into a step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim import groups
from lightning_scale.optim.backends.bucket import Guard, Way
from lightning_scale.optim.backends.choice import check_fused, pays_to_compile, way_of
from lightning_scale.optim.backends.norms import guard, squares_total
from lightning_scale.optim.backends.two_passes import refuse_incomplete
from lightning_scale.optim.dtensor import is_sharded, local
from lightning_scale.optim.groups import check_group_keys
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.self_check import triton_is_right, try_waiting
from lightning_scale.optim.state.reset import reset_bias_correction, reset_moments
from lightning_scale.optim.state.sharded_moments import refuse_codes
from lightning_scale.optim.state.state_dict import keep_state_dtypes
from lightning_scale.optim.state.whole import mended
from lightning_scale.optim.step_plan import Gathered, Sorting, compute_dtype, gather, refuse_unsupported


class GuardedOptimizer(Optimizer):
    """Base of the optimizers: one test and one clip over the gradients of all groups before each step.

    Attributes:
        skipped_steps: 0-d int64 tensor: steps left out for a NaN or Inf gradient. On the parameters' device; reading it
            waits for that device.
    """

    skipped_steps: Tensor

    _groups_own: ClassVar[tuple[str, ...]] = ()
    """Options that a group may have and the constructor does not."""
    _pickled: ClassVar[tuple[str, ...]] = ("max_grad_norm", "skip_nonfinite", "fused", "skipped_steps")
    """Attributes beside torch's that a copy has too."""
    _waits: ClassVar[bool] = False
    """Whether its Triton kernels wait for one another inside a launch."""
    _converts: ClassVar[bool] = True
    """Whether kernels get weights and gradients in compute dtype; ``False``: as they are, to be converted in pieces."""

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        fused: bool | None,
    ) -> None:
        groups.positive("max_grad_norm", max_grad_norm)
        check_fused(fused)
        super().__init__(params, defaults)
        # Over all groups together, so they are the optimizer's and no group's.
        self.max_grad_norm = max_grad_norm
        self.skip_nonfinite = skip_nonfinite
        self.fused = fused
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device="cpu")
        self._sorting = Sorting()
        self._decided: list[Guard | None] = []  # by `decide`, for all calls of a step
        self._lost_layouts = False  # of flat tensors: a copy has others, which say nothing of layers

    # -- parameter groups ----------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see torch's. A key that is not used brings a warning.

        Raises:
            TypeError: for a group that is no dict, and for an option that is no number.
            ValueError: for options out of range, misspelled keys, options of the whole optimizer (``max_grad_norm``,
                ``skip_nonfinite``, ``fused``), and sparse or complex parameters.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group is a dict with the key 'params', not {type(param_group).__name__}.")
        check_group_keys(param_group, (*self.defaults, *self._groups_own), type(self).__name__)
        param_group = dict(param_group)  # the caller's own stays as it is
        self._complete_group(param_group)
        super().add_param_group(param_group)
        if "_sorting" in self.__dict__:
            self._sorting.forget()  # what all parameters together decide may be otherwise now
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            for p in group["params"]:
                refuse_unsupported(p)
        except Exception:
            self.param_groups.pop()
            raise

    def _complete_group(self, group: dict[str, Any]) -> None:
        """Add to a group, as its user wrote it, what follows from what it says and does not say."""

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for an option that is out of range."""
        groups.non_negative("lr", group["lr"])
        groups.non_negative("weight_decay", group["weight_decay"])

    # -- the step ------------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step on every parameter that has a gradient. Gradients are left as they are.

        Args:
            closure: Evaluates the model anew and returns the loss.

        Raises:
            IncompleteStep: see `refuse_incomplete`.
        """
        loss = None
        self._check_layouts()
        for layout in self._sorting.layouts():
            refuse_incomplete(layout)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Asked for every parameter that is sorted anew, and the same for all.
        pays = cache(lambda: pays_to_compile(p for group in self.param_groups for p in group["params"]))
        gathered = [
            bucket
            for number, group in enumerate(self.param_groups)
            for bucket in gather(
                group,
                number,
                self.state,
                self._init_state,
                self._sorting,
                partial(self._way_of, group, pays),
                convert=self._converts,
            )
        ]
        if gathered:
            decided = self._decide(gathered)
            if decided is not None:
                self._update(gathered, decided)
        return loss

    def _way_of(self, group: dict[str, Any], pays: Callable[[], bool], p: Tensor) -> Way:
        """How a parameter's step is taken; ``pays``: whether compiled kernels are worth their time to this optimizer."""
        way = way_of(self.fused, p, lambda: triton_is_right(self, p), lambda: self._compiles(group, p) and pays())
        if self.fused and way is Way.TRITON and p.device.type == "cuda":
            try_waiting(self, p)
        return way

    def _compiles(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether there is a compiled kernel for a CPU parameter's step with its group's options."""
        return True

    def _decide(self, gathered: list[Gathered]) -> Guard | None:
        """Test and clip over all gradients; None where the step is skipped and the host may know it."""
        if self._sorting.flat:
            if not self._decided:
                raise RuntimeError(
                    "a step on flat tensors was not begun with decide(): let the strategy take the steps."
                )
            return self._decided[0]
        looks = self.skip_nonfinite or self.max_grad_norm is not None
        if looks:
            self._look(gathered)
        known = [(g.layout, squares_total(g.norms[1].square())) for g in gathered if g.norms is not None]
        result = guard(
            [(g.layout, g.grads) for g in gathered if g.way is not Way.TRITON and g.norms is None],
            totals=[*known, *(fused_totals([g for g in gathered if g.way is Way.TRITON]) if looks else [])],
            test_finite=self.skip_nonfinite,
            max_grad_norm=self.max_grad_norm,
        )
        return self._counted(result)

    def _counted(self, result: Guard) -> Guard | None:
        """Count the step where it is skipped; None where the host may know that."""
        if result.finite is None:
            return result
        if self.skipped_steps.device != result.finite.device:
            self.skipped_steps = self.skipped_steps.to(result.finite.device)
        self.skipped_steps += ~result.finite
        if result.finite.device.type != "cpu":
            return result
        return Guard(None, result.clip) if bool(result.finite) else None  # on a CPU to look costs nothing

    def _look(self, gathered: list[Gathered]) -> None:
        """Fill in `Gathered.norms` where a step needs both norms anyway, so that gradients are read once less."""

    @abstractmethod
    def _init_state(self, group: dict[str, Any], weight: Tensor, layout: Layout) -> dict[str, Tensor]:
        """A new parameter's state.

        Args:
            group: Its group.
            weight: What the step is computed on: the local tensor's shape, device and dtype.
            layout: Which layers' elements that tensor holds.
        """

    @abstractmethod
    def _update(self, gathered: list[Gathered], decided: Guard) -> None:
        """Hand the buckets to the kernels."""

    # -- what strategies with flat tensors call ------------------------------------------------------------------------

    def attach_layouts(self, layouts: Mapping[Tensor, Layout]) -> None:
        """Say which layers' elements lie in the flat tensors that stand in the parameters' place.

        From now on every step begins with `decide`, and may come in several calls of ``step()``, each with some of the
        flat tensors in ``param_groups``; every call takes one collective, on all ranks, for the norms of all its layers.

        Args:
            layouts: By flat tensor, 1-D; each layout describes that one tensor, and lists the same layers on all ranks.
        """
        for flat, layout in layouts.items():
            assert flat.dim() == 1 and len(layout.tensor_numels) == 1, "a layout of one flat tensor"
        self._sorting.flat.update(layouts)
        self._lost_layouts = False

    def _check_layouts(self) -> None:
        if self._lost_layouts:
            raise RuntimeError(
                f"this {type(self).__name__} is a copy of one that stepped flat tensors (ZeRO's), and does not know which layers"
                " lie in its own: it would take each for one layer. Let the strategy make the optimizer and load a"
                " checkpoint, or call attach_layouts() with the copy's tensors."
            )

    @torch.no_grad()
    def init_state(self, group: dict[str, Any], flat: Tensor) -> None:
        """Make the state of a flat tensor of ``group`` now, where it has none, and not at its first step."""
        self._check_layouts()
        if not self.state[flat]:
            self.state[flat].update(self._init_state(group, flat, self._sorting.flat[flat]))

    @torch.no_grad()
    def decide(self, gradients: Sequence[tuple[Layout, list[Tensor]]]) -> None:
        """Before the first call of a step: test and clip over all gradients together (at most one collective).

        Args:
            gradients: Of every flat tensor: this rank's, with a layout that says where in them gradients are.
        """
        self._check_layouts()
        result = guard(gradients, test_finite=self.skip_nonfinite, max_grad_norm=self.max_grad_norm)
        self._decided = [self._counted(result)]

    # -- what users ask ------------------------------------------------------------------------------------------------

    def reset_bias_correction(self) -> None:
        """Start the step count of the bias correction again (as BERT's second stage does); moments are kept."""
        reset_bias_correction(self)

    def reset_moments(self) -> None:
        """Set first and second moments, or the momentum, to zero."""
        reset_moments(self)

    def refuse_incomplete(self) -> None:
        """Raises IncompleteStep where a Triton kernel of a step that was taken has left weights as they were. Waits for GPUs.

        ``step()`` asks the same without waiting, of the steps that the device has ended by then; replays of a CUDA graph do not.
        """
        for layout in self._sorting.layouts():
            for device in layout.gave_up:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            refuse_incomplete(layout)

    # -- torch.optim's contract ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """torch's, with ``skipped_steps`` beside ``state`` and ``param_groups``.

        Of sharded parameters (FSDP2) also in the first group, for torch.distributed.checkpoint keeps only these two.
        """
        self.refuse_incomplete()
        found = {**super().state_dict(), "skipped_steps": self.skipped_steps}
        if any(is_sharded(p) for group in self.param_groups for p in group["params"]):
            found["param_groups"][0]["skipped_steps"] = int(self.skipped_steps)
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict()`` gave, bit for bit: state keeps its own dtype, whatever the parameters'.

        Of a sharded run's whole state, blocks of 8-bit codes that ranks have cut in two get one scale, and are coded anew.
        """
        state_dict = {**state_dict, "state": {key: mended(own) for key, own in state_dict["state"].items()}}
        with keep_state_dtypes(self, self._expected_state, self._loaded_state):
            super().load_state_dict(state_dict)
        in_group = self.param_groups[0].pop("skipped_steps", None)
        skipped = state_dict.get("skipped_steps", in_group)
        if skipped is not None:
            self.skipped_steps = torch.as_tensor(skipped).clone()

    def _loaded_state(self, p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """A parameter's state in the form that steps take it in, of one that ``state_dict()`` gave."""
        refuse_codes(type(self).__name__, p, state)
        return state

    def _expected_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        """A parameter's state as it is before the first step, without memory."""
        dtype = compute_dtype(p) if group["master_weights"] else p.dtype
        return self._init_state(
            group, torch.empty_like(local(p), dtype=dtype, device="meta"), self._sorting.layout_of(p)
        )

    def __getstate__(self) -> dict[str, Any]:
        lost = self._lost_layouts or bool(self._sorting.flat)
        return {**super().__getstate__(), **{key: getattr(self, key) for key in self._pickled}, "_lost_layouts": lost}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        flat = self._sorting.flat if "_sorting" in self.__dict__ else {}  # load_state_dict comes here, too
        self._sorting = Sorting()
        self._sorting.flat.update(flat)
        self._decided = []


def fused_totals(gathered: list[Gathered]) -> list[tuple[Layout, Tensor]]:
    """What `guard` has to know of the gradients that Triton kernels take."""
    if not gathered:
        return []
    from lightning_scale.optim.backends.triton.sums import gradient_total

    return [(g.layout, gradient_total(g.layout, g.grads)) for g in gathered]
