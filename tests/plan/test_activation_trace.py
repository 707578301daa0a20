"""Traced bytes beside those that torch's allocator gave in a real forward and backward pass."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_scale.plan.activation_trace import Computing, peak_bytes
from lightning_scale.plan.micro_batch import BatchShapes, Unknown, read
from tests.plan.activation_models import Bert, Conv, Recomputed, really

PRECISIONS = {
    "float32": Computing(),
    "autocast": Computing(autocast=torch.bfloat16),
    "bfloat16": Computing(parameters=torch.bfloat16),
}
MODELS: dict[str, Any] = {
    "bert": Bert,
    "bert, dropout": lambda: Bert(0.1),
    "recomputed": Recomputed,
}


def shapes_of(model: Any) -> BatchShapes:
    found = read([DataLoader(model.data, batch_size=8)])
    assert isinstance(found, BatchShapes)
    return found


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        *((model, precision) for model in ("bert", "bert, dropout") for precision in PRECISIONS),
        ("recomputed", "float32"),
    ],
)
def test_what_is_traced_is_what_is_allocated(model: str, precision: str) -> None:
    computing = PRECISIONS[precision]
    with torch.device("meta"):
        without_memory = MODELS[model]()
    for samples in (8, 20):
        planned = peak_bytes(without_memory, shapes_of(without_memory), samples, computing)
        found = really(MODELS[model](), samples, computing.parameters, computing.autocast)
        assert planned == pytest.approx(found, rel=2e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions(precision: str) -> None:
    """At least what autograd keeps, at most what is allocated: oneDNN reorders one layer's input and output for a moment."""
    computing, model = PRECISIONS[precision], Conv()
    layer = 20 * (3 + 16) * 24 * 24 * (4 if precision == "float32" else 2)
    planned = peak_bytes(model, shapes_of(model), 20, computing)
    allocated = really(Conv(), 20, computing.parameters, computing.autocast)
    kept = saved(model.to(computing.parameters or torch.float32), 20, computing.autocast)
    assert kept <= planned <= allocated <= planned + layer


def saved(model: Conv, samples: int, autocast: torch.dtype | None) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, beside the model's."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # holds them, so that no address is used again
    dtype = next(model.parameters()).dtype
    images, labels = (column[:samples].clone() for column in model.data.tensors)
    pack = lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # noqa: E731
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", autocast, enabled=autocast is not None),
    ):
        model.training_step([images.to(dtype), labels])
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


def test_recomputing_saves_what_it_saves() -> None:
    whole, recomputed = (peak_bytes(m, shapes_of(m), 32, Computing()) for m in (Recomputed(False), Recomputed()))
    assert recomputed < whole / 2


def test_on_a_gpu_attention_with_dropout_keeps_no_matrix() -> None:
    with_dropout, without = Bert(), Bert()
    for layer in with_dropout.net.bert.encoder.layer:
        layer.attention.self.dropout.p = layer.attention.self.dropout_prob = 0.1
    shapes = shapes_of(without)
    fused = peak_bytes(without, shapes, 8, Computing(gpu=True))
    assert peak_bytes(with_dropout, shapes, 8, Computing(gpu=True)) == fused
    assert peak_bytes(with_dropout, shapes, 8, Computing()) > 1.2 * fused
    assert peak_bytes(without, shapes, 8, Computing()) == fused


class Softmax(L.LightningModule):
    """A matrix product, of low precision under autocast, and its softmax."""

    data = Recomputed.data
    calls: tuple[Any, ...] = (torch.softmax, Tensor.softmax, nn.functional.softmax)

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.weight, self.call = nn.Parameter(torch.zeros(32, 4096)), call

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen = self.call(batch[0] @ self.weight, dim=-1)
        return self.seen.mean()


@pytest.mark.parametrize("call", Softmax.calls)
def test_autocast_on_a_gpu_computes_softmax_in_float32(call: Any) -> None:
    model = Softmax(call)
    on_gpu, on_cpu = Computing(autocast=torch.bfloat16, gpu=True), Computing(autocast=torch.bfloat16)
    for computing, dtype in ((on_gpu, torch.float32), (on_cpu, torch.bfloat16)):
        peak_bytes(model, shapes_of(model), 64, computing)
        assert model.seen.dtype == dtype
    peak_bytes(model, shapes_of(model), 64, Computing(parameters=torch.bfloat16, gpu=True))
    assert model.seen.dtype == torch.bfloat16  # there is no autocast


class Tied(L.LightningModule):
    """Recurrent, a weight used twice, a part that is not trained, and a buffer."""

    data = Recomputed.data

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(32, 32, batch_first=True)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(32, 32).requires_grad_(False)
        self.register_buffer("scale", torch.ones(32))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = self.rnn(self.frozen(batch[0]).unsqueeze(1))[0] * self.scale
        return self.second(self.first(hidden)).square().mean()


def test_the_model_stays_as_it_was() -> None:
    with torch.device("meta"):
        model = Tied()
    before = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    state = torch.get_rng_state()
    assert peak_bytes(model, shapes_of(model), 8, Computing(autocast=torch.bfloat16)) > 0
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == before
    assert all(p.is_meta and p.grad is None for p in model.parameters())
    assert "log" not in vars(model) and torch.equal(torch.get_rng_state(), state)


def test_no_loss() -> None:
    class Nothing(Recomputed):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return None

    with pytest.raises(Unknown, match="returns no loss"):
        peak_bytes(Nothing(), shapes_of(Recomputed()), 8, Computing())
