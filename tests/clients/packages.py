"""The clients: each trains its package's own module on data that some package carries, by the package's own door.

What a client is given is what its users have: the micro-batch, an optimizer, and options of its Trainer. Nothing of a
package is edited.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_scale.alias import alias_pytorch_lightning
from lightning_scale.data import ResumableBatchSampler

alias_pytorch_lightning()  # neuralforecast and darts are built on it


@dataclass(frozen=True)
class Run:
    """What a user asks of one training."""

    micro_batch: int
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    lr: float = 0.01
    steps: int = 6
    options: dict[str, Any] = field(default_factory=dict)
    """Of the Trainer."""
    resumable: bool = False
    """Whether the loader has a `ResumableBatchSampler`, if it `goes_on`."""
    ranks: int = 1

    def trainer(self) -> dict[str, Any]:
        """The Trainer's options, steps and all."""
        quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
        quiet |= {"enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
        if self.ranks > 1:
            quiet |= {"devices": self.ranks, "strategy": "ddp_find_unused_parameters_true"}
        return quiet | {"max_steps": self.steps} | self.options


@dataclass(frozen=True)
class Client:
    """A package's module, with a fit of it."""

    package: str
    module: str
    data: str
    fit: Callable[[Run], L.Trainer]
    change: str
    """What its user has to change to use every callback, beside adding them."""
    batch: int = 16
    """Of the steps that are compared: four micro-batches."""
    validates: bool = True
    """Whether `ValidateEvery` can say when; some packages say it to the Trainer themselves."""
    saves: bool = True
    """Whether its checkpoints are such that a run can go on from them."""
    goes_on: bool = False
    """Whether its loader takes the sampler that goes on exactly."""

    def __str__(self) -> str:
        return self.package


def _macro() -> pd.DataFrame:
    """Twelve series of the United States' economy, 203 quarters, each of mean 0 and deviation 1; long form."""
    import statsmodels.api as sm

    table = sm.datasets.macrodata.load_pandas().data.drop(columns=["year", "quarter"])
    table = (table - table.mean()) / table.std()
    table["time"] = range(len(table))
    return table.melt("time", var_name="series", value_name="value").astype({"value": "float32"})


def _pytorch_forecasting(run: Run) -> L.Trainer:
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.metrics import QuantileLoss

    table = _macro()
    names = {"time_idx": "time", "target": "value", "group_ids": ["series"], "time_varying_unknown_reals": ["value"]}
    dataset = TimeSeriesDataSet(
        table[table["time"] < 32], max_encoder_length=12, max_prediction_length=4, **names, min_encoder_length=12
    )
    validation = TimeSeriesDataSet.from_dataset(dataset, table[table["time"] < 60], min_prediction_idx=40)
    model = TemporalFusionTransformer.from_dataset(
        dataset,
        learning_rate=run.lr,
        hidden_size=8,
        attention_head_size=1,
        dropout=0.0,
        hidden_continuous_size=4,
        loss=QuantileLoss(),
        optimizer=run.optimizer,
    )
    sampler: dict[str, Any] = {"batch_size": run.micro_batch}
    if run.resumable:
        sampler = {"batch_sampler": ResumableBatchSampler(len(dataset), run.micro_batch, seed=1)}
    trainer = L.Trainer(**run.trainer())
    trainer.fit(
        model,
        dataset.to_dataloader(train=True, num_workers=0, **sampler),
        validation.to_dataloader(train=False, batch_size=64, num_workers=0),
        weights_only=False,
    )
    return trainer


def _chemprop(run: Run) -> L.Trainer:
    from chemprop import data, featurizers, models, nn
    from rdkit import RDConfig

    class Model(models.MPNN):
        def configure_optimizers(self) -> torch.optim.Optimizer:  # chemprop's own is Adam with a warmup of its own
            return run.optimizer(self.parameters(), lr=run.lr)

    folder = Path(RDConfig.RDContribDir) / "FreeWilson" / "data"
    molecules = pd.read_csv(folder / "CHEMBL2321810.smi", sep=" ", names=["smiles", "Name"])
    table = molecules.merge(pd.read_csv(folder / "CHEMBL2321810_act.csv"), on="Name")[:76]
    points = [
        data.MoleculeDatapoint.from_smi(smiles, np.array([activity - 5.0]))
        for smiles, activity in zip(table["smiles"], table["Act"], strict=True)
    ]
    featurizer = featurizers.SimpleMoleculeMolGraphFeaturizer()
    training, validation = (data.MoleculeDataset(part, featurizer) for part in (points[:44], points[44:]))
    model = Model(
        nn.BondMessagePassing(d_h=16),
        nn.MeanAggregation(),
        nn.RegressionFFN(input_dim=16, hidden_dim=8),
        batch_norm=False,
    )
    loader = data.build_dataloader(training, batch_size=run.micro_batch, num_workers=0)
    if run.resumable:  # its function takes no sampler
        sampler = ResumableBatchSampler(len(training), run.micro_batch, seed=1)
        loader = DataLoader(training, batch_sampler=sampler, collate_fn=loader.collate_fn)
    trainer = L.Trainer(**run.trainer())
    trainer.fit(
        model,
        loader,
        data.build_dataloader(validation, batch_size=32, num_workers=0, shuffle=False),
        weights_only=False,
    )
    return trainer


def _neuralforecast(run: Run) -> L.Trainer:
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    options = run.trainer()
    options["callbacks"] = [*options.get("callbacks", []), _Fitted()]
    model = NHITS(
        h=4,
        input_size=12,
        batch_size=run.micro_batch,
        windows_batch_size=None,  # all windows: others are drawn anew in each micro-batch
        mlp_units=3 * [[16, 16]],
        learning_rate=run.lr,
        num_lr_decays=0,
        optimizer=run.optimizer,
        **options,
    )
    table = _macro().rename(columns={"series": "unique_id", "time": "ds", "value": "y"})
    NeuralForecast(models=[model], freq=1).fit(table)
    return _Fitted.trainer


class _Fitted(L.Callback):
    """Keeps the Trainer that a package makes, and makes of copies of callbacks."""

    trainer: L.Trainer

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _Fitted.trainer = trainer


def _darts(run: Run) -> L.Trainer:
    import statsmodels.api as sm
    from darts import TimeSeries
    from darts.models import TiDEModel
    from darts.utils.serialization import add_safe_globals

    weeks = sm.datasets.co2.load_pandas().data["co2"].interpolate().to_numpy(np.float32)
    weeks = (weeks - weeks.mean()) / weeks.std()
    model = TiDEModel(
        input_chunk_length=26,
        output_chunk_length=13,
        hidden_size=16,
        dropout=0.0,
        batch_size=run.micro_batch,
        n_epochs=1000,
        optimizer_cls=run.optimizer,
        optimizer_kwargs={"lr": run.lr},
        random_state=1,
        pl_trainer_kwargs=run.trainer(),
        save_checkpoints=False,
    )
    add_safe_globals([run.optimizer])
    model.fit(TimeSeries.from_values(weeks[: 38 + 44]), val_series=TimeSeries.from_values(weeks[100:160]))
    return model.trainer


_LONGEST = 96


class _Topics(torch.utils.data.Dataset):
    """Python's own help texts, each a sample: its first bytes, at most `_LONGEST`, of lengths that differ."""

    def __init__(self, part: slice) -> None:
        texts = [text.strip().encode() for _, text in sorted(pydoc_data.topics.topics.items())][part]
        self._texts = [text[: 24 + 17 * number % (_LONGEST - 24)] for number, text in enumerate(texts)]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> bytes:
        return self._texts[index]


def _padded(texts: list[bytes]) -> dict[str, Tensor]:
    """Ids and labels [samples, longest]; labels of padding are -100, as transformers' losses want it."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = labels[row, : len(text)] = torch.tensor(list(text))
    return {"input_ids": ids, "attention_mask": (labels != -100).long(), "labels": labels}


def texts(run: Run) -> DataLoader[Any]:
    """Padded help texts."""
    training = _Topics(slice(0, 44))
    order: dict[str, Any] = {"batch_size": run.micro_batch, "shuffle": True}
    if run.resumable:
        order = {"batch_sampler": ResumableBatchSampler(len(training), run.micro_batch, seed=1)}
    return DataLoader(training, collate_fn=_padded, **order)


class LanguageModel(L.LightningModule):
    """transformers' GPT-2, as its users train it in Lightning."""

    def __init__(self, optimizer: type[torch.optim.Optimizer], lr: float) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(vocab_size=256, n_positions=128, n_embd=32, n_layer=2, n_head=2, **no_dropout)
        self.model = GPT2LMHeadModel(config)
        self.optimizer, self.lr = optimizer, lr

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        # Its loss is a mean over the tokens that are predicted, and documents differ in length.
        return {"loss": self.model(**batch).loss, "num_items": (batch["labels"][:, 1:] != -100).sum()}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=self.lr)


def _transformers(run: Run) -> L.Trainer:
    trainer = L.Trainer(**run.trainer())
    trainer.fit(
        LanguageModel(run.optimizer, run.lr), texts(run), DataLoader(_Topics(slice(44, 60)), 16, collate_fn=_padded)
    )
    return trainer


CLIENTS = {
    client.package: client
    for client in (
        Client(
            "pytorch-forecasting",
            "TemporalFusionTransformer",
            "twelve economic series",
            _pytorch_forecasting,
            "`optimizer=LAMB`, an option of its models; to go on from a checkpoint, `trainer.fit(..., weights_only=False)`, for"
            " it keeps objects among hyper-parameters",
            goes_on=True,
        ),
        Client(
            "chemprop",
            "MPNN",
            "44 molecules with measured activities",
            _chemprop,
            "`configure_optimizers`, which builds Adam with a warmup of its own: return LAMB alone; to go on from"
            " a checkpoint, `trainer.fit(..., weights_only=False)`, for it keeps modules among hyper-parameters",
            goes_on=True,
        ),
        Client(
            "neuralforecast",
            "NHITS",
            "twelve economic series",
            _neuralforecast,
            "`alias_pytorch_lightning()` before the import. No `ValidateEvery`, for its `val_check_steps` sets the Trainer's own"
            " interval, in micro-batches; no `Resume`, for it keeps its callbacks among hyper-parameters, and files that hold"
            " objects are refused",
            batch=4,
            validates=False,
            saves=False,
        ),
        Client(
            "darts",
            "TiDEModel",
            "weekly CO2 at Mauna Loa",
            _darts,
            "`alias_pytorch_lightning()` before the import; callbacks go into `pl_trainer_kwargs`; to go on from a checkpoint,"
            " `darts.utils.serialization.add_safe_globals([LAMB])`",
        ),
        Client(
            "transformers",
            "GPT2LMHeadModel",
            "Python's help texts",
            _transformers,
            "`num_items` beside the loss, which is a mean over tokens",
            goes_on=True,
        ),
    )
}
