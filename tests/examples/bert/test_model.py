"""The module against transformers' own, and what it logs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional as F
from torch.optim import AdamW

from examples.bert import BertPretraining, TextData
from examples.bert.masking import IGNORED
from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.errors import ConfigurationError
from tests.toys import trainer

_TINY = {"layers": 1, "width": 16, "heads": 2, "max_positions": 64}


class Trained(BertPretraining):
    def configure_optimizers(self) -> Any:
        return AdamW(self.parameters(), lr=5e-3)


def _built(**options: Any) -> BertPretraining:
    torch.manual_seed(0)
    module = BertPretraining(**{**_TINY, "vocab_size": 50, **options})
    module.configure_model()
    return module


def _batch(ignore: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    positions = torch.stack([torch.randperm(12, generator=generator)[:4] for _ in range(3)])
    targets = torch.randint(5, 50, (3, 4), generator=generator)
    targets.view(-1)[:ignore] = IGNORED
    return {
        "input_ids": torch.randint(5, 50, (3, 12), generator=generator),
        "positions": positions,
        "targets": targets,
    }


@pytest.mark.parametrize("ignore", [0, 5])
def test_loss_and_gradients_are_those_of_transformers(ignore: int) -> None:
    from transformers import BertForMaskedLM

    module, batch = _built(), _batch(ignore)
    assert module.network is not None
    theirs = BertForMaskedLM(module.network.config)
    theirs.load_state_dict(module.network.state_dict())
    labels = torch.full((3, 12), IGNORED).scatter(1, batch["positions"], batch["targets"])
    expected = theirs(input_ids=batch["input_ids"], labels=labels).loss
    output = module.training_step(batch, 0)
    loss = output["loss"]
    assert output["num_items"] == int((labels != IGNORED).sum())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in module.network.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7)


def test_a_micro_batch_without_targets_has_loss_zero() -> None:
    output = _built().training_step(_batch(ignore=12), 0)
    loss = output["loss"]
    assert output["num_items"] == 0
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize(("size", "parameters"), [("base", 109_514_298), ("large", 335_174_458)])
def test_the_published_sizes(size: Any, parameters: int) -> None:
    module = BertPretraining(size=size, vocab_size=30_522)
    with torch.device("meta"):
        module.configure_model()
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_the_demo_has_no_dropout_and_two_layers() -> None:
    module = BertPretraining(vocab_size=4096)
    module.configure_model()
    assert module.network is not None
    config = module.network.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 128, 4)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.0


def test_building_twice_keeps_the_layers() -> None:
    module = _built()
    network = module.network
    module.configure_model()
    assert module.network is network


def test_layers_are_built_late() -> None:
    assert list(BertPretraining(**_TINY).parameters()) == []


def test_validation_is_the_mean_over_all_hidden_tokens(text_data: Callable[..., TextData], tmp_path: Path) -> None:
    data, module = text_data(micro_batch_size=10), Trained(**_TINY)
    (logged,) = trainer(tmp_path, [], logger=False).validate(module, data, verbose=False)
    losses, hits = [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits = module(batch["input_ids"], batch["positions"])
            losses += F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none").tolist()
            hits += (logits.argmax(-1) == batch["targets"]).flatten().tolist()
    assert len(losses) % 10 != 0  # the last batch is smaller, and counts for what it is
    assert logged["val_loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    assert logged["val_perplexity"] == pytest.approx(math.exp(math.fsum(losses) / len(losses)), rel=1e-4)
    assert logged["val_accuracy"] == pytest.approx(sum(hits) / len(hits), rel=1e-6)


def test_it_learns_more_than_frequencies(tmp_path: Path) -> None:
    # Each document repeats one word: a hidden one is that of its neighbours.
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"{'abcde'[i % 5]} " * 60 for i in range(60)))
    data = TextData([str(file)], 64, sequence_length=16, micro_batch_size=16, cache_dir=str(tmp_path / "cache"))
    L.seed_everything(0)
    run = trainer(tmp_path, [GradientAccumulation(32)], max_steps=80, limit_val_batches=0)
    module = Trained(layers=1, width=32, heads=2, max_positions=16)
    run.fit(module, data)
    (logged,) = trainer(tmp_path, []).validate(module, data, verbose=False)
    assert data.frequency_guess_loss() == pytest.approx(math.log(5), abs=0.2)
    assert logged["val_loss"] < 0.5 * data.frequency_guess_loss()


def test_a_checkpoint_knows_the_datas_vocabulary(text_data: Callable[..., TextData], tmp_path: Path) -> None:
    data, module = text_data(), Trained(**_TINY)
    run = trainer(tmp_path, [], max_steps=2, limit_val_batches=0)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = Trained.load_from_checkpoint(tmp_path / "run.ckpt")
    state = loaded.state_dict()
    assert state["network.bert.embeddings.word_embeddings.weight"].shape == (128, 16)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_no_optimizer_is_refused(text_data: Callable[..., TextData], tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"No `configure_optimizers\(\)` method defined"):
        trainer(tmp_path, [], max_steps=1).fit(BertPretraining(**_TINY), text_data())


def test_a_vocabulary_smaller_than_the_datas_is_refused(text_data: Callable[..., TextData], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.vocab_size is 100 but data\.vocab_size is 128"):
        trainer(tmp_path, [], max_steps=1).fit(Trained(**_TINY, vocab_size=100), text_data())


def test_an_unknown_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"write model\.vocab_size"):
        BertPretraining(**_TINY).configure_model()


def test_samples_longer_than_the_model_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"12 tokens but model\.max_positions is 8: raise it"):
        _built(max_positions=8).training_step(_batch(), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, r"model\.size is 'huge': write"),
        ({"layers": 0}, r"model\.layers is 0"),
        ({"width": 30, "heads": 4}, r"model\.width is 30, no multiple of its 4 heads"),
        ({"dropout": 1.0}, r"model\.dropout is 1\.0"),
        ({"vocab_size": 0}, r"model\.vocab_size is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        BertPretraining(**options)
