"""FSDP2's ``param_dtype`` and ``reduce_dtype`` in a plan, beside what two ranks take and send."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.plan.activation_trace import Computing, peak_bytes
from lightning_scale.plan.activations import computing_of
from lightning_scale.plan.communication import step_traffic
from lightning_scale.plan.configuration import configured
from lightning_scale.plan.memory import Shapes
from lightning_scale.plan.micro_batch import read
from lightning_scale.strategies import FSDP2Strategy
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import needs_fsdp2
from tests.plan.activation_models import Bert, allocated
from tests.toys import trainer

KEPT: dict[str, Any] = {}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("32-true", KEPT),
    "bfloat16": ("32-true", {"param_dtype": "bfloat16"}),
    "bfloat16, averaged in float32": ("32-true", {"param_dtype": "bfloat16", "reduce_dtype": "float32"}),
    "averaged in bfloat16": ("32-true", {"reduce_dtype": "bfloat16"}),
    "under autocast": ("bf16-mixed", {"param_dtype": "bfloat16", "reduce_dtype": "float32"}),
}
BYTES = {  # an element's, gathered and averaged
    "float32": (4, 4),
    "bfloat16": (2, 2),
    "bfloat16, averaged in float32": (2, 4),
    "averaged in bfloat16": (4, 2),
    "under autocast": (2, 4),
}
FEW, MANY = 16, 64


def placed(name: str) -> Any:
    precision, options = CASES[name]
    return configured(
        {"class_path": "lightning_scale.strategies.FSDP2Strategy", "init_args": options}, precision, "cpu"
    )


class Sent(TorchDispatchMode):
    """Bytes gathered and reduced, whole."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = self.reduced = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "c10d::_allgather_base_":
            self.gathered += args[0].nbytes
        if name == "c10d::_reduce_scatter_base_":
            self.reduced += args[1].nbytes
        return func(*args, **(kwargs or {}))


def _fit(folder: Path, name: str, samples: int) -> None:
    precision, options = CASES[name]
    strategy: Any = FSDP2Strategy(**options)
    run = trainer(
        folder, [], max_steps=1, precision=precision, strategy=strategy, devices=2, use_distributed_sampler=False
    )
    run.fit(Bert(), DataLoader(Bert.data, batch_size=samples))


def ranks(folder: str) -> dict[str, list[int]]:
    """Of each case: bytes gathered, bytes reduced, and how much more memory a large micro-batch takes than a small one."""

    def taken(name: str, samples: int) -> int:
        gc.collect()  # what is given back of the run before is no memory of this one
        return allocated(lambda: _fit(Path(folder), name, samples))

    found = {}
    for name in CASES:
        with Sent() as sent:
            _fit(Path(folder), name, FEW)
        found[name] = [sent.gathered, sent.reduced, taken(name, MANY) - taken(name, FEW)]
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return run_ranks(__name__, "ranks", tmp_path_factory.mktemp("fsdp2"), 2, timeout=240)[0]


@needs_fsdp2
@pytest.mark.parametrize("name", CASES)
def test_what_two_ranks_send(name: str, seen: dict[str, list[int]]) -> None:
    with torch.device("meta"):
        shapes = Shapes(tuple(tuple(p.shape) for p in Bert().parameters()))
    gathered, reduced = (n * shapes.numel for n in BYTES[name])
    sent = step_traffic("fsdp2", shapes, placed(name), 1)
    assert (sent.messages, sent.bytes) == (3, (2 * gathered + reduced) / 2)
    assert seen[name][1] == pytest.approx(reduced, rel=0.01)  # rows are padded
    # What lies outside of the layers is gathered once: it is not given up between the passes.
    assert gathered < seen[name][0] < 2.01 * gathered
    assert seen[name][0] == pytest.approx(seen["float32"][0] * BYTES[name][0] / 4, rel=0.01)


@needs_fsdp2
@pytest.mark.parametrize("name", CASES)
def test_what_micro_batches_take(name: str, seen: dict[str, list[int]]) -> None:
    """Between two sizes: what is gathered for a moment, which plans leave out, is the same in both."""
    with torch.device("meta"):
        model = Bert()
    shapes = read([DataLoader(Bert.data, batch_size=8)])
    computing = computing_of("fsdp2", placed(name))
    few, many = (peak_bytes(model, shapes, n, computing) for n in (FEW, MANY))  # type: ignore[arg-type]
    assert seen[name][2] == pytest.approx(many - few, rel=0.01)


def test_what_is_configured() -> None:
    assert computing_of("fsdp2", placed("bfloat16")) == Computing(param_dtype=torch.bfloat16)
    assert computing_of("fsdp2_offload", placed("under autocast")) == Computing(
        autocast=torch.bfloat16, param_dtype=torch.bfloat16
    )
    true = replace(placed("bfloat16"), precision="bf16-true")
    assert computing_of("fsdp2", true) == Computing(torch.bfloat16)  # nothing is left to cast
    assert computing_of("fsdp2", replace(true, precision="64-true")) == Computing(
        torch.float64, param_dtype=torch.bfloat16
    )
    assert computing_of("fsdp2", placed("averaged in bfloat16")) == Computing()
    assert computing_of("ddp", placed("bfloat16")) == Computing()  # the others do not know that option
    assert str(computing_of("fsdp2", placed("bfloat16"))) == "bfloat16, param_dtype"


class Shifted(L.LightningModule):
    """Inputs, a product, and a buffer that is added to it."""

    data = TensorDataset(torch.randn(64, 32))
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 512)
        self.register_buffer("shift", torch.zeros(512))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen = self.layer(batch[0]) + self.shift
        return self.seen.square().mean()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_buffers_stay_as_the_precision_says(precision: str, dtype: torch.dtype) -> None:
    """As in `FSDP2Strategy`: the Trainer's precision converts the module, and ``param_dtype`` is of parameters alone."""
    model = Shifted()
    shapes: Any = read([DataLoader(Shifted.data, batch_size=8)])
    peak_bytes(model, shapes, 8, computing_of("fsdp2", replace(placed("bfloat16"), precision=precision)))
    assert model.seen.dtype == dtype


def test_frozen_parameters_are_gathered() -> None:
    shapes = Shapes(((10,),), frozen=990)
    assert step_traffic("fsdp2", shapes, placed("float32"), 1).bytes == (2 * 4 * 1000 + 4 * 10) / 2
    assert step_traffic("zero3", shapes, placed("float32"), 1).bytes == (2 * 4 * 1000 + 4 * 10) / 2
    assert step_traffic("zero1", shapes, placed("float32"), 1).bytes == 4 * 10
    assert step_traffic("ddp", shapes, placed("float32"), 1).bytes == 4 * 10
