"""Keys of a parameter group: misspelled ones are refused, and what torch and Lightning write there is taken."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from lightning_scale.optim import LAMB, LARS

from .kinds import Make, bits, every_kind, model_of, through_a_file, train
from .test_bad_arguments import parameter, refused

BOTH = pytest.mark.parametrize("kind", [LAMB, LARS])

MISSPELLED = {
    "weigth_decay": "weight_decay",
    "weight_decy": "weight_decay",
    "Weight_Decay": "weight_decay",
    "LR": "lr",
    "layer_adaption": "layer_adaptation",
    "exclude_1D": "exclude_1d",
    "trust_ratio_clips": "trust_ratio_clip",
    "max_gradnorm": "max_grad_norm",
}


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@BOTH
@pytest.mark.parametrize("key", MISSPELLED)
def test_a_misspelled_key_is_refused_with_the_nearest(kind: Any, key: str) -> None:
    group = {"params": [parameter()], key: 0.1}
    refused(f"{key}.*{MISSPELLED[key]}", lambda: kind([group], lr=0.1))
    optimizer = kind([parameter()], lr=0.1)
    refused(f"{key}.*{MISSPELLED[key]}", lambda: optimizer.add_param_group(group))
    assert len(optimizer.param_groups) == 1


def test_the_nearest_is_one_of_this_optimizers() -> None:
    refused("bets.*betas", lambda: LAMB([{"params": [parameter()], "bets": (0.9, 0.99)}]))
    refused("momentun.*momentum", lambda: LARS([{"params": [parameter()], "momentun": 0.9}], lr=0.1))
    refused("'param'.*'params'", lambda: LAMB([{"param": [parameter()]}]))


@BOTH
@pytest.mark.parametrize(("key", "value"), [("max_grad_norm", 1.0), ("skip_nonfinite", False), ("fused", False)])
def test_what_is_the_optimizers_is_no_groups(kind: Any, key: str, value: Any) -> None:
    refused(f"{key}.*{kind.__name__}", lambda: kind([{"params": [parameter()], key: value}], lr=0.1))


@BOTH
@pytest.mark.parametrize("value", [0, 1, "no", "True", 0.5])
def test_layer_adaptation_is_a_bool_or_none(kind: Any, value: Any) -> None:
    refused("layer_adaptation", lambda: kind([{"params": [parameter()], "layer_adaptation": value}], lr=0.1))


@BOTH
def test_keys_that_resemble_nothing_get_one_warning(kind: Any) -> None:
    group = {"params": [parameter()], "amsgrad": False, "lr_scale": 0.5, "tag": "head"}
    with pytest.warns(UserWarning, match="amsgrad, lr_scale, tag") as caught:
        optimizer = kind([group], lr=0.1)
    assert len(caught) == 1 and str(caught[0].message).endswith(".")
    assert optimizer.param_groups[0]["tag"] == "head"


@BOTH
def test_several_groups_and_later_ones_get_one_warning_a_key(kind: Any) -> None:
    groups = [{"params": [parameter()], "lr_scale": 0.5**i, "tag": str(i)} for i in range(4)]
    with pytest.warns(UserWarning, match="lr_scale, tag") as caught:
        optimizer = kind(groups, lr=0.1)
    assert len(caught) == 1
    optimizer.add_param_group({"params": [parameter()], "lr_scale": 1.0})
    with pytest.warns(UserWarning, match="group: rho\\.") as caught:
        copy.deepcopy(optimizer).add_param_group({"params": [parameter()], "tag": 1, "rho": 0.05})
    assert len(caught) == 1


class Wrapper(torch.optim.Optimizer):
    """As SAM and Lookahead make their groups: with all of their own defaults, handed to the optimizer inside."""

    def __init__(self, params: Any, inside: Any, **options: Any) -> None:
        super().__init__(params, options)
        self.inside = inside(self.param_groups, **options)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inside.step()


def _in_wrapper(params: Any, **options: Any) -> Any:
    return Wrapper(params, LAMB, **options)


def _in_zero(params: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own at the import
        from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(params, optimizer_class=LAMB, **options)


@pytest.mark.parametrize("wrapped", [_in_wrapper, _in_zero])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1, "max_grad_norm": 1.0, "skip_nonfinite": False, "fused": False},
        {"weight_decay": 0.1, "exclude_1d": False},
        {"weight_decay": 0.0, "fused": None},
        {"trust_ratio_clip": [0.0, 2.0], "betas": (0.5, 0.75)},
    ],
)
def test_a_wrapper_takes_the_steps_that_the_optimizer_takes_by_itself(
    wrapped: Any, options: dict[str, Any], tmp_path: Any
) -> None:
    """What a group repeats of the constructor's options is no word of its own."""
    warnings.simplefilter("ignore")  # of biases that begin as zeros
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    try:
        alone, inside = model_of(), model_of()
        train(alone, LAMB(alone.parameters(), lr=0.05, **options), range(3))
        train(inside, wrapped(inside.parameters(), lr=0.05, **options), range(3))
        assert bits(alone) == bits(inside)
    finally:
        torch.distributed.destroy_process_group()


@BOTH
@pytest.mark.parametrize(
    ("group", "decays"),
    [({"weight_decay": 0.2}, True), ({"weight_decay": 0.1}, False), ({"exclude_1d": False}, True), ({}, False)],
)
def test_a_decay_of_its_own_is_a_groups_word(kind: Any, group: dict[str, Any], decays: bool) -> None:
    biases = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for bias, decay in zip(biases, (0.1, 0.0), strict=True):
        bias.grad = torch.ones(3)
        own = {"params": [bias], "layer_adaptation": False, **(group if decay else {})}
        kind([own], lr=0.1, weight_decay=decay).step()
    assert torch.equal(*biases) is not decays


@pytest.mark.parametrize("source", [torch.optim.SGD, torch.optim.Adagrad])
def test_groups_of_torchs_optimizers_are_not_taken_for_misspellings(source: Any) -> None:
    groups = source([parameter()], lr=0.1).param_groups
    for group in groups:
        del group["fused"]
    with pytest.warns(UserWarning, match="does not use"):
        LAMB(groups)


@BOTH
@pytest.mark.parametrize("key", ["name", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"])
def test_what_schedulers_and_lightning_write_is_taken(kind: Any, key: str) -> None:
    optimizer = kind([{"params": [parameter()], key: 0.5}], lr=0.1)
    assert optimizer.param_groups[0][key] == 0.5


SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=8),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.1, max_lr=0.5, cycle_momentum="momentum" in o.defaults),
    "SWALR": lambda o: SWALR(o, swa_lr=0.1),
}


@every_kind
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_groups_a_scheduler_wrote_to_may_be_given_to_another(make: Make, scheduler: Any) -> None:
    model = model_of()
    optimizer = make(model.named_parameters())
    scheduler(optimizer)
    train(model, optimizer, range(1))
    other = make([{**group, "params": list(model.parameters())} for group in optimizer.param_groups])
    assert other.param_groups[0].keys() == optimizer.param_groups[0].keys()
    other.load_state_dict(through_a_file(optimizer.state_dict()))


@BOTH
def test_loading_copying_and_pickling_ask_nothing(kind: Any) -> None:
    """A checkpoint of another time or of a framework that writes its own keys still loads."""
    weight = parameter()
    optimizer = kind([weight], lr=0.1)
    optimizer.param_groups[0]["weigth_decay"] = 3.0
    optimizer.param_groups[0]["fused"] = None
    other = kind([weight], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["weigth_decay"] == 3.0
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.param_groups[0]["weigth_decay"] == 3.0


@pytest.mark.parametrize("value", [0.9, None, "fast", (0.9, "fast"), (0.9, 0.99, 0.999)])
def test_betas_that_are_no_pair(value: Any) -> None:
    refused("betas", lambda: LAMB([parameter()], betas=value))


@BOTH
@pytest.mark.parametrize("name", ["weight_norm_clip", "trust_ratio_clip"])
@pytest.mark.parametrize("value", [3.0, True, "wide", ("low", "high"), (0.0, None)])
def test_bounds_that_are_no_pair(kind: Any, name: str, value: Any) -> None:
    refused(name, lambda: kind([parameter()], lr=0.1, **{name: value}))


def test_a_pair_may_be_any_sequence() -> None:
    optimizer = LAMB([nn.Parameter(torch.ones(2))], betas=torch.tensor([0.5, 0.75]), weight_norm_clip=[0, 10])  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)
    assert optimizer.param_groups[0]["weight_norm_clip"] == (0.0, 10.0)
