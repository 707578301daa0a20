"""State of other libraries, of older versions and in other forms: taken as it is meant, or refused where it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.quantization import SIGNED, UNSIGNED, dequantize
from tests.optim.kinds import Make, bits, every_kind, model_of, through_a_file, train

SMALL = ((5, 7), (7,), ())
LARGE = ((70, 71), (4, 3, 20, 20))


def parameters(shapes: Any, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def steps(optimizer: Any, params: list[nn.Parameter], numbers: range) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


CONTINUED: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}, AdamW8bit),
    "AdamW-uphill": (torch.optim.AdamW, {"lr": 0.01, "maximize": True, "foreach": False}, AdamW8bit),
    "SGD": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}, SGD8bit),
    "SGD-dampened": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.3}, SGD8bit),
    "SGD-nesterov": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}, SGD8bit),
    "SGD-memoryless": (torch.optim.SGD, {"lr": 0.01}, SGD8bit),
}


@pytest.mark.parametrize(("theirs", "options", "ours"), CONTINUED.values(), ids=CONTINUED)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 32 * 2.0**-24)])
@pytest.mark.parametrize("fused", [None, False])
def test_what_torch_began_goes_on_as_torch_would(
    theirs: Any, options: dict[str, Any], ours: Any, dtype: torch.dtype, bound: float, fused: bool | None
) -> None:
    """Options come with the state; those that torch has not stay the optimizer's own."""
    a = parameters(SMALL, dtype)
    first = theirs(a, **options)
    steps(first, a, range(4))
    b = copy.deepcopy(a)
    second = ours(b, lr=9.0, weight_decay=9.0, fused=fused)
    second.load_state_dict(through_a_file(first.state_dict()))
    steps(first, a, range(4, 9))
    steps(second, b, range(4, 9))
    for p, q in zip(a, b, strict=True):
        assert float((p - q).detach().abs().max()) <= bound * max(1.0, float(p.detach().abs().max()))


@pytest.mark.parametrize("kind", [AdamW8bit, LAMB8bit])
def test_moments_are_rounded_to_8_bits(kind: Any) -> None:
    """Each number to within the half of the largest distance of two codes, of its block's largest magnitude."""
    params = parameters(LARGE)
    first = torch.optim.AdamW(params)
    steps(first, params, range(3))
    second = kind(params)
    second.load_state_dict(first.state_dict())
    for p in params:
        theirs, ours = first.state[p], second.state[p]
        for key, code, bound in (("exp_avg", SIGNED, 0.00704), ("exp_avg_sq", UNSIGNED, 0.00352)):
            assert ours[key].dtype == torch.uint8 and ours[key].shape == p.shape
            read = dequantize(ours[key].view(-1), ours[f"{key}_absmax"], code).double()
            true = theirs[key].double().view(-1)
            padded = torch.nn.functional.pad(true, (0, -len(true) % 256)).view(-1, 256)
            largest = padded.abs().amax(1).repeat_interleave(256)[: len(true)]
            assert ((read - true).abs() <= bound * largest + 1e-12).all()
        assert float(ours["step"]) == 3
    steps(second, params, range(3, 5))


@pytest.mark.parametrize("kind", [LAMB, LAMB8bit])
def test_lamb_takes_adams_moments_and_keeps_its_own_options(kind: Any) -> None:
    params = parameters(SMALL)
    first = torch.optim.AdamW(params, lr=0.25)
    steps(first, params, range(3))
    second = kind([{"params": params, "layer_adaptation": False}], trust_ratio_clip=(0, 2))
    own = dict(second.param_groups[0])
    second.load_state_dict(first.state_dict())
    group = second.param_groups[0]
    assert (group["lr"], group["eps"]) == (0.25, 1e-8)
    for key in ("layer_adaptation", "trust_ratio_clip", "exclude_1d", "decay_1d", "master_weights", "bias_correction"):
        assert group[key] == own[key]
    for p in params:
        assert {k: bits(v) for k, v in second.state[p].items()} == {k: bits(v) for k, v in first.state[p].items()}
    steps(second, params, range(3, 5))


def test_moments_of_bfloat16_parameters_become_float32() -> None:
    """torch keeps them in the parameter's dtype."""
    params = parameters(SMALL, torch.bfloat16)
    first = torch.optim.AdamW(params)
    steps(first, params, range(2))
    second = LAMB(params)
    second.load_state_dict(first.state_dict())
    for p in params:
        assert second.state[p]["exp_avg"].dtype == torch.float32
        assert torch.equal(second.state[p]["exp_avg"], first.state[p]["exp_avg"].float())


@pytest.mark.parametrize(
    "make", [int, float, np.int64, np.float32, lambda n: torch.tensor([n]), lambda n: torch.tensor(n)]
)
@pytest.mark.parametrize("kind", [LAMB, AdamW8bit, SGD8bit])
def test_a_step_count_may_be_any_number(kind: Any, make: Callable[[int], Any]) -> None:
    a, b = parameters(SMALL), parameters(SMALL)
    first, second = kind(a, lr=0.1), kind(b, lr=0.1)
    steps(first, a, range(3))
    saved = copy.deepcopy(first.state_dict())
    for state in saved["state"].values():
        state["step"] = make(3)
    with torch.no_grad():
        for p, q in zip(a, b, strict=True):
            q.copy_(p)
    second.load_state_dict(saved)
    assert bits(first) == bits(second)
    steps(first, a, range(3, 5))
    steps(second, b, range(3, 5))
    assert bits(a) == bits(b) and bits(first) == bits(second)


@every_kind
def test_options_that_a_state_lacks_are_the_optimizers_own(make: Make) -> None:
    """Each by itself, and all that this package's optimizers alone have."""
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(2))
    options = [key for key in optimizer.param_groups[0] if key != "params"]
    for left_out in (*([key] for key in options), ["maximize", "master_weights", "decay_1d", "layer_adaptation"]):
        saved = copy.deepcopy(optimizer.state_dict())
        for key in left_out:
            saved["param_groups"][0].pop(key, None)
        fresh = make(model.parameters())
        fresh.load_state_dict(saved)
        assert fresh.param_groups[0] == optimizer.param_groups[0]
        assert bits(fresh) == bits(optimizer)
        train(model, fresh, range(1))


def of_apex(state_dict: dict[str, Any]) -> dict[str, Any]:
    """apex's FusedAdam and timm's Lamb count steps in the group."""
    for state in state_dict["state"].values():
        del state["step"]
    state_dict["param_groups"][0]["step"] = 3
    return state_dict


def of_bitsandbytes(state_dict: dict[str, Any]) -> dict[str, Any]:
    """In 32 bits."""
    for state in state_dict["state"].values():
        state |= {"step": 3, "state1": state.pop("exp_avg"), "state2": state.pop("exp_avg_sq")}
    return state_dict


def packed(state_dict: dict[str, Any]) -> dict[str, Any]:
    """As bitsandbytes wraps it for FSDP."""
    for state in of_bitsandbytes(state_dict)["state"].values():
        state["__bnb_optimizer_quant_state__"] = {key: state.pop(key) for key in ("state1", "state2")}
    return state_dict


@pytest.mark.parametrize("form", [of_apex, of_bitsandbytes, packed])
def test_other_names_and_places(form: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    a = parameters(SMALL)
    first = torch.optim.AdamW(a, weight_decay=0.1)
    steps(first, a, range(3))
    b = copy.deepcopy(a)
    second = AdamW8bit(b)
    second.load_state_dict(form(copy.deepcopy(first.state_dict())))
    assert "step" not in second.param_groups[0]
    steps(first, a, range(3, 6))
    steps(second, b, range(3, 6))
    for p, q in zip(a, b, strict=True):
        assert float((p - q).detach().abs().max()) <= 32 * 2.0**-24 * max(1.0, float(p.detach().abs().max()))


@pytest.mark.parametrize("size", [256, 2048])
def test_8_bits_of_bitsandbytes(size: int) -> None:
    """Codes of any table, in blocks of either size: the numbers that they stand for are kept to the rounding of ours."""
    (p,) = parameters([(90, 100)])
    generator = torch.Generator().manual_seed(3)
    codes = [torch.randint(0, 256, p.shape, dtype=torch.uint8, generator=generator) for _ in range(2)]
    tables = [torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)]
    absmax = [torch.rand(-(-p.numel() // size), generator=generator) + 0.5 for _ in range(2)]
    state = {"step": 5}
    for i in range(2):
        state |= {f"state{i + 1}": codes[i], f"qmap{i + 1}": tables[i], f"absmax{i + 1}": absmax[i]}
    group = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    optimizer = AdamW8bit([p])
    optimizer.load_state_dict({"state": {0: state}, "param_groups": [group]})
    found = optimizer.state[p]
    for i, (key, code) in enumerate((("exp_avg", SIGNED), ("exp_avg_sq", UNSIGNED))):
        true = tables[i].numpy()[codes[i].numpy().reshape(-1)] * absmax[i].numpy()[np.arange(9000) // size]
        read = dequantize(found[key].view(-1), found[f"{key}_absmax"], code).numpy()
        assert np.abs(read - true).max() <= 0.00704 * 1.5
    steps(optimizer, [p], range(2))


def test_momentum_of_bitsandbytes() -> None:
    a = parameters(SMALL)
    first = torch.optim.SGD(a, lr=0.1, momentum=0.8, dampening=0.25)
    steps(first, a, range(3))
    state = {i: {"step": 3, "state1": first.state[p]["momentum_buffer"].clone()} for i, p in enumerate(a)}
    group = {"lr": 0.1, "betas": (0.8, 0.25), "eps": 0.0, "weight_decay": 0.0, "params": [0, 1, 2]}
    b = copy.deepcopy(a)
    second = SGD8bit(b, momentum=0.3)
    second.load_state_dict({"state": state, "param_groups": [group]})
    steps(first, a, range(3, 6))
    steps(second, b, range(3, 6))
    for p, q in zip(a, b, strict=True):
        assert float((p - q).detach().abs().max()) <= 32 * 2.0**-24 * max(1.0, float(p.detach().abs().max()))


def _of_torch(kind: Any, **options: Any) -> Callable[[list[nn.Parameter]], dict[str, Any]]:
    def gave(params: list[nn.Parameter]) -> dict[str, Any]:
        optimizer = kind(params, **options)
        steps(optimizer, params, range(2))
        return copy.deepcopy(optimizer.state_dict())

    return gave


def _without_steps(params: list[nn.Parameter]) -> dict[str, Any]:
    saved = _of_torch(torch.optim.AdamW)(params)
    for state in saved["state"].values():
        del state["step"]
    return saved


def _with_vectors(params: list[nn.Parameter]) -> dict[str, Any]:
    saved = _of_torch(LAMB)(params)
    for state in saved["state"].values():
        state["step"] = torch.ones(2)
    return saved


def _without_blocks(params: list[nn.Parameter]) -> dict[str, Any]:
    saved = _of_torch(torch.optim.AdamW)(params)
    for state in of_bitsandbytes(saved)["state"].values():
        state |= {key: state[key].to(torch.uint8) for key in ("state1", "state2")}
    return saved


REFUSED: dict[str, tuple[Callable[[list[nn.Parameter]], dict[str, Any]], Any, str]] = {
    "amsgrad": (_of_torch(torch.optim.AdamW, amsgrad=True), AdamW8bit, "max_exp_avg_sq.*AdamW8bit keeps step, exp_avg"),
    "RMSprop": (_of_torch(torch.optim.RMSprop), LAMB, "square_avg.*LAMB keeps step, exp_avg, exp_avg_sq"),
    "Adamax": (_of_torch(torch.optim.Adamax), LAMB8bit, "exp_inf"),
    "Adagrad": (_of_torch(torch.optim.Adagrad), AdamW8bit, "sum"),
    "SGD in LAMB": (_of_torch(torch.optim.SGD, momentum=0.9), LAMB, "momentum_buffer"),
    "AdamW in SGD8bit": (_of_torch(torch.optim.AdamW), SGD8bit, "exp_avg.*torch's SGD"),
    "AdamW in LARS": (_of_torch(torch.optim.AdamW), LARS, "exp_avg.*LARS keeps .*momentum_buffer"),
    "SGD in LARS": (_of_torch(torch.optim.SGD, momentum=0.9), LARS, "SGD's.*trust ratio"),
    "SGD in LARS8bit": (_of_torch(torch.optim.SGD, momentum=0.9), LARS8bit, "SGD's.*trust ratio"),
    "LARS in SGD8bit": (_of_torch(LARS, lr=0.1), SGD8bit, "LARS's.*trust ratio"),
    "no steps": (_without_steps, LAMB, "no step count.*write the number"),
    "vector steps": (_with_vectors, LAMB, "step count tensor"),
    "no blocks": (_without_blocks, AdamW8bit, "block_wise"),
}


@pytest.mark.parametrize(("gave", "kind", "sentence"), REFUSED.values(), ids=REFUSED)
def test_state_that_means_something_else_is_refused_before_anything_is_loaded(
    gave: Callable[[list[nn.Parameter]], dict[str, Any]], kind: Any, sentence: str
) -> None:
    params = parameters(SMALL)
    saved = gave(params)
    optimizer = kind(params, lr=0.125)
    steps(optimizer, params, range(2))
    before = bits(optimizer), optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match=f"(?s){sentence}") as error:
        optimizer.load_state_dict(saved)
    assert str(error.value).endswith(".")
    assert (bits(optimizer), optimizer.param_groups[0]["lr"]) == before


def test_a_users_own_tensors_beside_our_state_are_kept() -> None:
    params = parameters(SMALL)
    optimizer, fresh = LAMB(params), LAMB(params)
    steps(optimizer, params, range(1))
    optimizer.state[params[0]]["average"] = torch.ones(5, 7)
    optimizer.state["epoch"] = 3
    optimizer.state["seen"] = [1, 2]
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(fresh.state[params[0]]["average"], torch.ones(5, 7))
    assert (fresh.state["epoch"], fresh.state["seen"]) == (3, [1, 2])
    fresh.reset_moments()
    fresh.reset_bias_correction()
    steps(fresh, params, range(1))


class _Made(TorchDispatchMode):
    """Counts the bytes of new memory that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        fresh = {
            s.data_ptr(): s.nbytes() for t in _tensors(result) if t.device.type != "meta" and (s := t.untyped_storage())
        }
        self.bytes += sum(size for at, size in fresh.items() if at not in known)
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


@pytest.mark.parametrize("kind", [LAMB, LARS, AdamW8bit, LAMB8bit, SGD8bit, LARS8bit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_takes_the_memory_of_the_state_once(kind: Any, dtype: torch.dtype) -> None:
    params = parameters(LARGE, dtype)
    optimizer = kind(params, lr=0.1, master_weights=True)
    steps(optimizer, params, range(1))
    saved = through_a_file(optimizer.state_dict())
    size = sum(t.nbytes for t in _tensors(saved["state"]))
    with _Made() as made:
        kind(params, lr=0.1, master_weights=True).load_state_dict(saved)
    assert size <= made.bytes <= 1.01 * size + 64


@pytest.mark.parametrize("kind", [LAMB, LARS, AdamW8bit, LAMB8bit, SGD8bit, LARS8bit])
@pytest.mark.parametrize("fused", [None, False])
def test_moments_follow_the_model_to_another_dtype(kind: Any, fused: bool | None) -> None:
    """After model.double() steps are those of a float64 optimizer that has the same numbers; the way back rounds."""
    params = parameters([(70, 71), (33,)])
    optimizer = kind(params, lr=0.01, fused=fused)
    steps(optimizer, params, range(2))
    twins = [nn.Parameter(p.detach().double()) for p in params]
    other = kind(twins, lr=0.01, fused=False)
    for p, q in zip(params, twins, strict=True):
        for key, value in optimizer.state[p].items():
            if key.endswith("_absmax"):
                continue
            if value.dtype == torch.uint8:
                code = UNSIGNED if key == "exp_avg_sq" else SIGNED
                scales = optimizer.state[p][f"{key}_absmax"]
                value = dequantize(value.view(-1), scales, code).view(p.shape)
            other.state[q][key] = value.clone() if key == "step" else value.double()
    for p in params:
        p.data = p.data.double()
    steps(optimizer, params, range(2, 4))
    steps(other, twins, range(2, 4))
    assert bits(params) == bits(twins) and bits(optimizer) == bits(other)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for p in params:
            p.data, p.grad = p.data.to(dtype), None
        steps(optimizer, params, range(1))
        found = {t.dtype for p in params for key, t in optimizer.state[p].items()}
        assert found <= {torch.float32, torch.uint8}
        assert all(p.detach().isfinite().all() for p in params)


@pytest.mark.parametrize("fused", [None, False])
def test_masters_go_when_the_model_becomes_float32(fused: bool | None) -> None:
    params = parameters(SMALL, torch.bfloat16)
    optimizer = LAMB(params, master_weights=True, fused=fused)
    steps(optimizer, params, range(2))
    for p in params:
        p.data, p.grad = p.data.float(), None
    steps(optimizer, params, range(2, 3))
    assert all("master" not in optimizer.state[p] for p in params)
