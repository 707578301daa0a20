"""The same training by DeepSpeed's engine itself, which hands each rank's slice of all layers to the optimizer.

`python -m torch.distributed.run --nproc-per-node=2 -m examples.comparisons.deepspeed_alone --dir … --config …`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import lightning.pytorch as L
import torch
import yaml
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader

from examples.bert.data import TextData
from examples.bert.masking import IGNORED
from examples.bert.model import BertPretraining
from examples.bert.run_record import RunRecord, StepRow, ValidationRow
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.optim import LAMB
from lightning_scale.strategies.zero.deepspeed_internals import nothing_compiled


def main() -> None:
    """One rank's part; rank 0 writes ``report.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--config", type=Path, required=True, help="what `lightning-scale fit` trains the others with")
    parser.add_argument("--trainer.max_steps", dest="steps", type=int, help="in place of the configuration's")
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text())
    with nothing_compiled():
        deepspeed.init_distributed("gloo", verbose=False)
    record = train(config, options.seed, options.steps or config["trainer"]["max_steps"])
    if dist.get_rank() == 0:
        record.write_csv(options.dir / "report.csv")
    dist.barrier()
    dist.destroy_process_group()


def train(config: dict[str, Any], seed: int, steps: int) -> RunRecord:
    """Train as the configuration says, with DeepSpeed's ZeRO stage 2 and the layers' grouping of `LAMB`.

    Args:
        config: Of `lightning-scale fit`.
        seed: Of weights, order and masks.
        steps: Optimizer steps.
    """
    accumulation = next(
        each["init_args"] for each in config["trainer"]["callbacks"] if "batch_size" in each["init_args"]
    )
    batch_size, ranks = accumulation["batch_size"], dist.get_world_size()
    L.seed_everything(seed)
    data = TextData(**config["data"]["init_args"], seed=seed)
    data.setup("fit")
    module = BertPretraining(**config["model"]["init_args"], vocab_size=data.vocab_size)
    module.configure_model()
    network = module.network
    assert network is not None
    ratios: list[float] = []  # this rank's, of the present step
    engine = _engine(network, config["optimizer"]["init_args"], batch_size // ranks, ratios)
    record = RunRecord()
    for step, batch in enumerate(_batches(data, batch_size // ranks, steps * batch_size), 1):
        logits = engine(batch["input_ids"], batch["positions"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED)
        ratios.clear()
        engine.backward(loss)
        engine.step()
        mean = loss.detach().double() / ranks
        dist.all_reduce(mean)
        least, middle, most = _of_all_ranks(ratios)
        rate = config["optimizer"]["init_args"]["lr"]
        length = batch["input_ids"].shape[1]
        record.steps.append(
            StepRow(step, 1, step * batch_size, length, batch_size, rate, float(mean), least, middle, most)
        )
    record.add_validation(ValidationRow(steps, 1, _held_out_loss(network, data)))
    return record


def _engine(network: nn.Module, options: dict[str, Any], micro_batch_size: int, ratios: list[float]) -> Any:
    """DeepSpeed's, with `LAMB` as its client optimizer; each step appends the ratios that it used."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    decay, others = options["weight_decay"], {name: v for name, v in options.items() if name != "weight_decay"}
    groups = [  # what LAMB itself does with layers that it can tell apart
        {"params": matrices, "weight_decay": decay, "layer_adaptation": True},
        {"params": vectors, "weight_decay": 0.0, "layer_adaptation": False},
    ]
    optimizer = LAMB(groups, **others)
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }

    def look(of: Any, *_: Any) -> None:  # DeepSpeed calls it for one group at a time
        rules = of.layer_rules()
        ratios.extend(float(stats.trust_ratio) for name, stats in of.layer_stats().items() if rules[name].adapts)

    optimizer.register_step_post_hook(look)
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)
    return engine


def _batches(data: TextData, micro_batch_size: int, samples: int) -> Iterator[dict[str, Tensor]]:
    """The samples that the other runs see at each step, this rank's share of them."""
    dataset: Any = data.train_dataloader().dataset
    sampler = ResumableBatchSampler(
        len(dataset), micro_batch_size, seed=data.seed, epoch_samples=samples, positions=True
    )
    return iter(DataLoader(dataset, batch_sampler=sampler))


def _of_all_ranks(own: list[float]) -> tuple[float, float, float]:
    """The smallest, the mean and the largest ratio: each rank has one, for all that it holds of the matrices."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    ratios = [ratio for each in found for ratio in each]
    return min(ratios), sum(ratios) / len(ratios), max(ratios)


def _held_out_loss(network: nn.Module, data: TextData) -> float:
    """On all held-out samples, the same on every rank."""
    dataset: Any = data.val_dataloader().dataset
    network.eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in DataLoader(dataset, batch_size=64):
            logits, targets = network(batch["input_ids"], batch["positions"]), batch["targets"]
            total += float(
                F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
            )
            count += int((targets != IGNORED).sum())
    return total / count


if __name__ == "__main__":
    main()
