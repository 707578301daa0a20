"""FSDP2Strategy where modules are used twice, share, wrap or lack things, and where layers are unfrozen late: two ranks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops import utilities
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._fully_shard import _fsdp_collectives
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.optim import LAMB, LAMB8bit
from lightning_scale.strategies import FSDP2Strategy, ZeROStrategy
from tests.distributed.launch import run_ranks
from tests.distributed.zero_runs import needs_deepspeed
from tests.toys import trainer


class Base(L.LightningModule):
    """Two layers and a head whose single row one rank has."""

    make: Callable[..., Any] = LAMB

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - 1).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx), sync_dist=True)

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return type(self).make(self.named_parameters(), lr=0.01, weight_decay=0.01)


class EightBit(Base):
    make = LAMB8bit

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Linear(32, 130), nn.Linear(130, 32))  # of more than 4,096 elements


class Pooled(Base):
    """A layer in no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(32, 32)


class Unfreezing(Base):
    """A layer that begins to train in the second epoch; all parameters are in the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.a.requires_grad_(self.current_epoch >= 1)


class FrozenAgain(Base):
    """A layer that has trained, and is frozen when the checkpoint is saved."""

    def on_train_epoch_start(self) -> None:
        self.a.requires_grad_(self.current_epoch != 1)


class Compiled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.compile(self.a, backend="eager")  # type: ignore[assignment]


class Checkpointed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.b = checkpoint_wrapper(self.b)


class FrozenGroup(Base):
    def configure_optimizers(self) -> Any:
        self.a.requires_grad_(False)
        rest = [*self.b.named_parameters("b"), *self.head.named_parameters("head")]
        return torch.optim.AdamW(
            [{"params": list(self.a.named_parameters("a"))}, {"params": rest, "lr": 0.02}], lr=0.01
        )


RESUMED = [EightBit, Pooled, Unfreezing, FrozenAgain, Compiled, Checkpointed, FrozenGroup]


def data() -> DataLoader[Any]:
    dataset = TensorDataset(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    return DataLoader(dataset, batch_sampler=ResumableBatchSampler(64, 4))


def plain() -> DataLoader[Any]:
    return DataLoader(data().dataset, batch_size=4)


def fit(folder: str, module: L.LightningModule, strategy: Any, epochs: int = 3, **options: Any) -> L.Trainer:
    run = trainer(
        Path(folder),
        [GradientAccumulation(16), *options.pop("callbacks", [])],
        devices=2,
        strategy=strategy,
        max_epochs=epochs,
        **options.pop("trainer", {}),
    )
    run.fit(module, data(), **options)
    return run


def whole(module: L.LightningModule) -> dict[str, Tensor]:
    names = {name: p.detach() for name, p in module.named_parameters()}
    found = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in names.items()}  # type: ignore[operator]
    return {name.replace("_orig_mod.", ""): p.cpu().clone() for name, p in found.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def resuming_ranks(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in RESUMED:
        for form, folders in (("folder", True), ("file", False)):
            path = f"{folder}/{kind.__name__}-{form}.ckpt"
            straight, resumed = kind(), kind()
            fit(folder, straight, FSDP2Strategy(save_distributed_checkpoint=folders))
            fit(folder, kind(), FSDP2Strategy(save_distributed_checkpoint=folders), epochs=2).save_checkpoint(path)
            fit(folder, resumed, FSDP2Strategy(save_distributed_checkpoint=folders), ckpt_path=path)
            found[f"{kind.__name__} {form}"] = same(whole(straight), whole(resumed))
    return found


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    one, other = run_ranks(__name__, "resuming_ranks", tmp_path_factory.mktemp("resumed"), timeout=280)
    assert one == other
    return one  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize("kind", RESUMED, ids=lambda kind: kind.__name__)
def test_a_resumed_run_has_the_same_bits(kind: type, form: str, resumed: dict[str, list[str]]) -> None:
    assert resumed[f"{kind.__name__} {form}"] == [], "these differ"


def crossing_ranks(folder: str) -> dict[str, Any]:
    """From one strategy, and one way of wrapping, to another."""
    found: dict[str, Any] = {}
    ways: dict[str, Callable[[], Any]] = {
        "ddp": lambda: DDPStrategy(find_unused_parameters=True),
        "file": lambda: FSDP2Strategy(save_distributed_checkpoint=False),
    }
    pairs = {
        "Pooled": (Pooled, Pooled),
        "Compiled to plain": (Compiled, Base),
        "plain to checkpointed": (Base, Checkpointed),
    }
    for name, (saves, loads) in pairs.items():
        for way, strategy in ways.items():
            path = f"{folder}/{name}-{way}.ckpt"
            straight = saves()
            fit(folder, saves(), strategy(), epochs=2).save_checkpoint(path)
            fit(folder, straight, strategy())
            resumed = loads()
            fit(folder, resumed, FSDP2Strategy(), ckpt_path=path)
            one, other = whole(straight), whole(resumed)
            other = {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in other.items()}
            found[f"{name} from {way}"] = max(float((one[n] - other[n]).norm() / one[n].norm()) for n in one)
    return found


def test_checkpoints_go_over_to_other_strategies_and_wrappers(tmp_path: Path) -> None:
    one, other = run_ranks(__name__, "crossing_ranks", tmp_path, timeout=200)
    assert one == other
    assert max(one.values()) < 1e-6, one


def zero_ranks(folder: str) -> dict[str, Any]:
    """Files between FSDP2 and ZeRO, where a layer is compiled in one of them."""
    found: dict[str, Any] = {}
    ways: dict[str, Callable[[], Any]] = {
        "zero": lambda: ZeROStrategy(stage=2, save_distributed_checkpoint=False),
        "fsdp2": lambda: FSDP2Strategy(save_distributed_checkpoint=False),
    }
    straight = Base()
    fit(folder, straight, FSDP2Strategy())
    expected = whole(straight)
    for saves, loads in (("zero", "fsdp2"), ("fsdp2", "zero"), ("zero", "zero")):
        for first, second in ((Compiled, Base), (Base, Compiled)):
            path = f"{folder}/{saves}-{loads}-{first.__name__}.ckpt"
            fit(folder, first(), ways[saves](), epochs=2).save_checkpoint(path)
            resumed = second()
            fit(folder, resumed, ways[loads](), ckpt_path=path)
            seen = whole(resumed)
            worst = max(float((expected[n] - seen[n]).norm() / expected[n].norm()) for n in expected)
            found[f"{first.__name__} under {saves}, {second.__name__} under {loads}"] = worst
    return found


@needs_deepspeed
def test_files_of_compiled_layers_go_between_fsdp2_and_zero(tmp_path: Path) -> None:
    for seen in run_ranks(__name__, "zero_ranks", tmp_path, timeout=200):
        assert max(seen.values()) < 1e-5, seen


class Tied(Base):
    """Two layers that are gathered by themselves, and share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)])
        self.layers[2].weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        for layer in self.layers:
            x = torch.tanh(layer(self.b(x)))
        return self.head(x)  # type: ignore[no-any-return]


class LateLayers(Tied):
    """Layers that are gathered by themselves, and begin to train in the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
        self.layers.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.layers.requires_grad_(self.current_epoch >= 1)


class Outside(Base):
    def on_train_batch_end(self, *args: Any) -> None:
        self.a(torch.ones(2, 16))


class AdaptersAlone(Base):
    """Saves and loads one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.a.requires_grad_(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in found.items() if not name.startswith("a.")}


class NormalizedBatches(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)


def words(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was said"


def using_ranks(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    gloo = utilities.dist
    utilities.dist = SimpleNamespace(get_backend=lambda: "nccl")  # Lightning then evaluates in inference mode
    try:
        module = Base()
        run = trainer(Path(folder), [GradientAccumulation(16)], devices=2, strategy=FSDP2Strategy(), max_epochs=2)
        run.fit(module, data(), plain())
        found["validated"] = run.validate(module, plain(), verbose=False)[0]["loss"]
        found["tested"] = run.test(module, plain(), verbose=False)[0]["loss"]
        found["predicted"] = len(run.predict(module, plain()))
        again = fit(folder, module, FSDP2Strategy())
        found["again"] = again.global_step
    finally:
        utilities.dist = gloo
    alone = Base()
    fit(folder, alone, DDPStrategy(), epochs=2)
    with torch.no_grad():
        found["loss under DDP"] = float(alone.training_step([data().dataset.tensors[0]], 0))  # type: ignore[attr-defined]

    tied, tied_whole = Tied(), Tied()
    fit(folder, tied, FSDP2Strategy())
    fit(folder, tied_whole, DDPStrategy())
    one, other = whole(tied), whole(tied_whole)
    found["tied"] = max(float((one[n] - other[n]).norm() / other[n].norm()) for n in other)

    for dtype in ("bfloat16", None):
        late = LateLayers()
        before = whole(late)
        fit(folder, late, FSDP2Strategy(param_dtype=dtype))  # type: ignore[arg-type]
        found[f"late, {dtype}"] = [float((whole(late)[n] - before[n]).norm()) for n in before if n.startswith("layers")]

    for name, offload in (("meta", None), ("meta, offloaded", "cpu")):
        strategy: Any = FSDP2Strategy(offload_parameters=offload)  # type: ignore[arg-type]
        run = trainer(Path(folder), [GradientAccumulation(16)], devices=2, strategy=strategy, max_epochs=1)
        with run.init_module(empty_init=True):
            empty = Base()
        assert empty.a.weight.is_meta
        run.fit(empty, data())
        made = whole(empty)["b.weight"]
        found[name] = [float(made.std()), float((made[:16] - made[16:]).abs().min()) > 0]

    adapters = AdaptersAlone()
    path = f"{folder}/adapters.ckpt"
    fit(folder, adapters, FSDP2Strategy(), epochs=2).save_checkpoint(path)
    resumed, straight = AdaptersAlone(), AdaptersAlone()
    fit(folder, resumed, FSDP2Strategy(), ckpt_path=path)
    fit(folder, straight, FSDP2Strategy())
    found["adapters"] = same(whole(straight), whole(resumed))

    file = f"{folder}/all.ckpt"
    run = fit(folder, Base(), FSDP2Strategy(save_distributed_checkpoint=False), epochs=2)
    run.save_checkpoint(file)
    fresh = trainer(Path(folder), [], devices=2, strategy="fsdp2")
    found["a fresh module tested"] = fresh.test(Base(), plain(), ckpt_path=file, verbose=False)[0]["loss"]

    found["outside"] = words(lambda: fit(folder, Outside(), FSDP2Strategy()))
    found["sync_batchnorm"] = words(
        lambda: fit(folder, NormalizedBatches(), FSDP2Strategy(), trainer={"sync_batchnorm": True})
    )
    found["averaging"] = words(lambda: fit(folder, Base(), FSDP2Strategy(), callbacks=[WeightAveraging()]))
    found["static graph"] = words(lambda: fit(folder, Base(), DDPStrategy(static_graph=True)))
    return found


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    one, other = run_ranks(__name__, "using_ranks", tmp_path_factory.mktemp("used"), timeout=200)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == other[name], name
    return one  # type: ignore[no-any-return]


def test_a_module_is_used_again(used: dict[str, Any]) -> None:
    """Fit with validation, validate, test, predict and fit once more, in inference mode where Lightning wants it."""
    assert used["validated"] == used["tested"] == pytest.approx(used["loss under DDP"], rel=1e-5)
    assert (used["predicted"], used["again"]) == (8, 12)
    assert used["a fresh module tested"] == pytest.approx(used["loss under DDP"], rel=1e-5)


def test_layers_that_share_a_weight_are_gathered_together(used: dict[str, Any]) -> None:
    assert used["tied"] < 1e-6


def test_layers_that_are_unfrozen_late_train_in_any_dtype(used: dict[str, Any]) -> None:
    assert min(used["late, None"]) > 0.01
    assert used["late, bfloat16"] == pytest.approx(used["late, None"], rel=0.05)


@pytest.mark.parametrize("where", ["meta", "meta, offloaded"])
def test_a_module_on_the_meta_device_trains(where: str, used: dict[str, Any]) -> None:
    deviation, differ = used[where]
    assert deviation == pytest.approx(32**-0.5 / 3**0.5, rel=0.15), "torch's nn.Linear draws from U(±1/√in)"
    assert differ, "the ranks' shares are copies"


def test_what_adapters_alone_save_goes_on(used: dict[str, Any]) -> None:
    assert used["adapters"] == []


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("outside", "RuntimeError: .*inside of training_step.* and a layer was called elsewhere"),
        ("sync_batchnorm", "ConfigurationError: sync_batchnorm=True has no effect on CPUs"),
        ("averaging", "ConfigurationError: WeightAveraging keeps a whole copy of the module"),
        ("static graph", "ConfigurationError: static_graph=True and GradientAccumulation's steps"),
    ],
)
def test_what_cannot_be_is_said_on_all_ranks(what: str, sentence: str, used: dict[str, Any]) -> None:
    assert re.match(sentence, used[what], flags=re.DOTALL), used[what]


def replicated_ranks(folder: str) -> dict[str, Any]:
    """Two copies, on one rank each: gradients are summed over copies once a step."""
    counted = 0
    original = _fsdp_collectives.dist.all_reduce

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        counted += sys._getframe(1).f_globals is vars(_fsdp_collectives)
        return original(*args, **kwargs)

    module, one_copy = Base(), Base()
    _fsdp_collectives.dist.all_reduce = count
    try:
        run = fit(folder, module, FSDP2Strategy(replicas=2))
    finally:
        _fsdp_collectives.dist.all_reduce = original
    fit(folder, one_copy, DDPStrategy())
    one, other = whole(module), whole(one_copy)
    return {
        "steps": run.global_step,
        "all-reduces": counted,
        "apart": max(float((one[n] - other[n]).norm() / other[n].norm()) for n in other),
    }


def test_copies_are_synchronized_once_a_step(tmp_path: Path) -> None:
    for seen in run_ranks(__name__, "replicated_ranks", tmp_path):
        assert seen["steps"] == 12 and seen["apart"] < 1e-6
        assert seen["all-reduces"] == 12, "two micro-batches a step, and one all-reduce"


class Parallel(Base):
    def __init__(self) -> None:
        super().__init__()
        self.samples: list[float] = []

    def configure_model(self) -> None:
        plan = {"a": ColwiseParallel(), "b": RowwiseParallel()}
        parallelize_module(self, self.device_mesh["tensor_parallel"], plan)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.samples += batch[0][:, 0].tolist()
        return super().training_step(batch, batch_idx)


def parallel_ranks(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, loader in (("plain", plain()), ("resumable", data())):
        module = Parallel()
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
        run = trainer(Path(folder), [GradientAccumulation(16)], devices=2, strategy=strategy, max_steps=3)
        run.fit(module, loader)
        found[name] = module.samples
    return found


def test_tensor_parallel_ranks_take_the_same_samples(tmp_path: Path) -> None:
    one, other = run_ranks(__name__, "parallel_ranks", tmp_path)
    for name in ("plain", "resumable"):
        assert one[name] == other[name]
        assert len(one[name]) == 3 * 16, "a step's batch counts ranks that hold one model once"
