"""Parameters that are left out by name: of decay and ratio (``exclude``), and of 8 bits (``eight_bit_except``)."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.registry import REGISTRY

from .kinds import bits, set_gradients, through_a_file, train
from .test_bad_arguments import refused

Named = Iterable[tuple[str, Tensor]]
every_optimizer = pytest.mark.parametrize("kind", [entry.kind for entry in REGISTRY.values()], ids=list(REGISTRY))
every_backend = pytest.mark.parametrize("fused", [None, False, pytest.param(True, id="triton")])
eight_bit = pytest.mark.parametrize("kind", [LAMB8bit, LARS8bit, AdamW8bit, SGD8bit])
EXCLUDED = ["embed*", "*.head.weight"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 70)


class Model(nn.Module):
    """With layers of more than 4,096 elements, and one of fewer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(70, 64)
        self.block = Block()
        self.other = nn.Linear(70, 60)
        self.small = nn.Linear(60, 5)


def is_excluded(name: str) -> bool:
    return name.startswith("embed") or name.endswith(".head.weight")


def pair(kind: Any, ours: dict[str, Any], theirs: dict[str, Any], **options: Any) -> tuple[Any, Any, Model, Model]:
    """An optimizer with ``ours``, and one whose group of the excluded parameters has ``theirs``."""
    a, b = Model(), Model()
    kept = [p for name, p in b.named_parameters() if not is_excluded(name)]
    left = [p for name, p in b.named_parameters() if is_excluded(name)]
    options = {"lr": 0.1, "weight_decay": 0.2, **options}
    first = kind(a.named_parameters(), **ours, **options)
    return first, kind([{"params": kept}, {"params": left, **theirs}], **options), a, b


@every_optimizer
@every_backend
def test_excluded_are_those_of_a_group_without_decay_and_ratio(kind: Any, fused: bool | None) -> None:
    if fused:
        pytest.importorskip("triton")
    layerwise = {"layer_adaptation": False} if issubclass(kind, (LAMB, LARS)) else {}
    theirs = {"weight_decay": 0.0, **layerwise}
    ours, other, a, b = pair(kind, {"exclude": EXCLUDED}, theirs, fused=fused)
    train(a, ours, range(2))
    train(b, other, range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    plain = Model()
    train(plain, kind(plain.named_parameters(), lr=0.1, weight_decay=0.2, fused=fused), range(2))
    moved = {name: not torch.equal(p, q) for (name, p), q in zip(a.named_parameters(), plain.parameters(), strict=True)}
    assert moved == {name: is_excluded(name) for name, _ in a.named_parameters()}


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_a_name_counts_more_than_the_group(kind: Any) -> None:
    named = list(Model().named_parameters())
    group = {"params": named, "weight_decay": 0.3, "layer_adaptation": True}
    optimizer = kind([group], lr=0.1, exclude=["*.bn.*"])
    set_gradients([p for _, p in named], 0)
    optimizer.step()
    rules = optimizer.layer_rules()
    assert {name for name, rule in rules.items() if not rule.adapts} == {"block.bn.weight", "block.bn.bias"}


def test_a_group_may_have_its_own() -> None:
    named = list(Model().named_parameters())
    groups = [{"params": named[:3], "exclude": ["embedding.*"]}, {"params": named[3:]}]
    optimizer = LAMB(groups, exclude=["small.weight"])
    assert [group["exclude"] for group in optimizer.param_groups] == [("embedding.*",), ("small.weight",)]
    refused(
        "small.weight.*embedding.weight",
        lambda: LAMB([{"params": named[:3], "exclude": ["small.weight"]}, {"params": named[3:]}]),
    )


WRAPPED = {
    "torch.compile": lambda m: setattr(m, "block", torch.compile(m.block)) or m,
    "all of it": torch.compile,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("pattern", ["block.head.weight", "block.*.weight", "*block*head.weight"])
def test_what_wrappers_put_into_names_may_be_left_out(wrap: Any, pattern: str) -> None:
    named = list(wrap(Model()).named_parameters())
    assert any("_orig_mod." in name for name, _ in named)
    optimizer = LAMB(named, exclude=[pattern])
    set_gradients([p for _, p in named], 0)
    optimizer.step()
    adapting = {name for name, rule in optimizer.layer_rules().items() if rule.adapts}
    assert not any("head.weight" in name for name in adapting) and len(adapting) == 3


def test_checkpoint_wrappers_too() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Model()
    model.block = checkpoint_wrapper(model.block)  # type: ignore[assignment]
    names = [f"block._checkpoint_wrapped_module.{name}" for name, _ in Block().named_parameters()]
    named = [(name, p) for name, p in zip(names, model.block.parameters(), strict=True)]
    assert LAMB(named, exclude=["block.bn.*"]).param_groups[0]["exclude"] == ("block.bn.*",)


@every_optimizer
@pytest.mark.parametrize("option", ["exclude", "eight_bit_except"])
def test_patterns_that_match_nothing_and_patterns_without_names(kind: Any, option: str) -> None:
    if option not in inspect.signature(kind).parameters:
        return
    model = Model()
    for pattern, meant in (("block.bm.*", "block.bn.weight"), ("embeding.weight", "embedding.weight")):
        refused(
            f"{option}.*{pattern[:8]}.*{meant}",
            lambda: kind(model.named_parameters(), lr=0.1, **{option: ["small.weight", pattern]}),  # noqa: B023
        )
    refused(f"{option}.*named_parameters", lambda: kind(model.parameters(), lr=0.1, **{option: ["small.weight"]}))
    refused(f"{option}.*list", lambda: kind(model.named_parameters(), lr=0.1, **{option: "small.weight"}))
    refused(f"{option}.*list", lambda: kind(model.named_parameters(), lr=0.1, **{option: [3]}))
    assert kind(model.parameters(), lr=0.1, **{option: []})  # none


def test_every_eight_bit_optimizer_has_both_options() -> None:
    for entry in REGISTRY.values():
        assert {"exclude"} <= entry.kind([("w", nn.Parameter(torch.ones(2)))], lr=0.1).defaults.keys()  # type: ignore[call-arg]
        assert ("eight_bit_except" in inspect.signature(entry.kind).parameters) == entry.eight_bit


def test_added_groups_are_looked_at_too() -> None:
    named = list(Model().named_parameters())
    optimizer = LAMB(named[:2], exclude=["embedding.*"])
    optimizer.add_param_group({"params": named[2:4]})  # the optimizer's patterns have matched
    refused("tail", lambda: optimizer.add_param_group({"params": named[4:], "exclude": ["tail.*"]}))
    assert len(optimizer.param_groups) == 2


@every_optimizer
def test_names_and_patterns_outlive_files_copies_and_pickles(kind: Any) -> None:
    options: dict[str, Any] = {"exclude": EXCLUDED, "lr": 0.1, "weight_decay": 0.2}
    if "eight_bit_except" in inspect.signature(kind).parameters:
        options["eight_bit_except"] = ["other.*"]
    first, second = Model(), Model()
    ours = kind(first.named_parameters(), **options)
    train(first, ours, range(2))
    second.load_state_dict(first.state_dict())
    loaded = kind(second.named_parameters(), **options)
    loaded.load_state_dict(through_a_file(ours.state_dict()))
    copied = copy.deepcopy((first, ours))
    pickled = pickle.loads(pickle.dumps((first, ours)))
    train(first, ours, range(2, 4))
    for model, optimizer in ((second, loaded), copied, pickled):
        train(model, optimizer, range(2, 4))
        assert bits(model) == bits(first) and bits(optimizer) == bits(ours)


def test_a_state_without_names_keeps_the_names_that_are_here() -> None:
    first, second = Model(), Model()
    unnamed = LAMB(first.parameters(), weight_decay=0.2)
    train(first, unnamed, range(1))
    optimizer = LAMB(second.named_parameters(), weight_decay=0.2, exclude=EXCLUDED)
    saved = unnamed.state_dict()
    del saved["param_groups"][0]["exclude"]  # of a time before it
    optimizer.load_state_dict(saved)
    # What the state does not say is this optimizer's own.
    assert optimizer.param_groups[0]["exclude"] == tuple(EXCLUDED)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in second.named_parameters()]


@eight_bit
@every_backend
def test_what_is_excepted_keeps_float32_moments(kind: Any, fused: bool | None) -> None:
    """Their steps are those of a layer that is too small for 8 bits; all others are as without the option."""
    if fused:
        pytest.importorskip("triton")
    model, plain, never = Model(), Model(), Model()

    class Never(kind):  # type: ignore[misc]
        _eight_bit_from = float("inf")

    optimizers = [
        kind(model.named_parameters(), lr=0.1, eight_bit_except=EXCLUDED, fused=fused),
        kind(plain.named_parameters(), lr=0.1, fused=fused),
        Never(never.named_parameters(), lr=0.1, fused=fused),
    ]
    for m, optimizer in zip((model, plain, never), optimizers, strict=True):
        train(m, optimizer, range(3))
    for (name, p), q, r in zip(model.named_parameters(), plain.parameters(), never.parameters(), strict=True):
        dtypes = {own.dtype for own in optimizers[0].state[p].values() if own.dim()}
        codes = p.numel() >= 4096 and not is_excluded(name)
        assert (torch.uint8 in dtypes) == codes, name
        assert torch.equal(p, r if is_excluded(name) else q), name
        assert p.numel() < 4096 or not torch.equal(q, r), name


@eight_bit
def test_a_state_in_full_precision_is_rounded_and_codes_are_refused_where_there_are_none(kind: Any) -> None:
    model = Model()
    plain = kind(model.named_parameters(), lr=0.1)
    train(model, plain, range(1))
    other = kind(model.named_parameters(), lr=0.1, eight_bit_except=["embed*"])
    with pytest.raises(ValueError, match=r"uint8.*keeps it as float32"):
        other.load_state_dict(plain.state_dict())
    train(model, other, range(1))
    plain.load_state_dict(other.state_dict())
    for name, p in model.named_parameters():
        assert (torch.uint8 in {own.dtype for own in plain.state[p].values()}) == (p.numel() >= 4096), name
    train(model, plain, range(1))


PARAMETRIZED = {
    "new": nn.utils.parametrizations.weight_norm,
    "new, of columns": lambda m: nn.utils.parametrizations.weight_norm(m, dim=1),
    "old": nn.utils.weight_norm,
}


@pytest.mark.parametrize("norm", PARAMETRIZED.values(), ids=PARAMETRIZED)
@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_the_lengths_of_weight_norm_are_vectors(kind: Any, norm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(norm(nn.Linear(5, 4)), norm(nn.Conv2d(3, 4, 2)))
    optimizer = kind(model.named_parameters(), lr=0.1, weight_decay=0.5)
    set_gradients(model.parameters(), 0)
    optimizer.step()
    assert {name for name, rule in optimizer.layer_rules().items() if rule.adapts} == {
        name for name, _ in model.named_parameters() if name.endswith(("original1", "weight_v"))
    }


def test_a_matrix_of_one_column_is_a_matrix() -> None:
    optimizer = LAMB([("head.weight", nn.Parameter(torch.ones(4, 1))), ("log_g", nn.Parameter(torch.ones(4, 1)))])
    set_gradients([p for group in optimizer.param_groups for p in group["params"]], 0)
    optimizer.step()
    assert all(rule.adapts for rule in optimizer.layer_rules().values())
