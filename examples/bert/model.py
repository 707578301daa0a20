"""BERT, trained from random weights to predict hidden tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as L
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.text import Perplexity

from examples.bert.masking import IGNORED
from lightning_scale.errors import ConfigurationError

if TYPE_CHECKING:
    from examples.bert.network import BertAtPositions

_SIZES: dict[str, dict[str, Any]] = {
    "demo": {"layers": 2, "width": 128, "heads": 4, "dropout": 0.0},
    "base": {"layers": 12, "width": 768, "heads": 12, "dropout": 0.1},
    "large": {"layers": 24, "width": 1024, "heads": 16, "dropout": 0.1},
}


class BertPretraining(L.LightningModule):
    """Masked-language-model pretraining (Devlin et al. 2018, arXiv 1810.04805), without next-sentence prediction.

    Logs ``train_loss`` at every micro-batch, and ``val_loss``, ``val_accuracy`` and ``val_perplexity`` over the held-out
    hidden tokens of all ranks. It has no ``configure_optimizers`` (Lightning says so where one is missing): the optimizer
    is the configuration's (``optimizer:``), or a subclass's.

    Args:
        size: "demo" (2 layers of width 128, no dropout: for a laptop), "base" or "large".
        layers: Instead of the size's.
        width: Instead of the size's; a multiple of the heads.
        heads: Instead of the size's.
        dropout: Instead of the size's, for hidden states and attention.
        max_positions: The longest sequence length.
        vocab_size: Tokens in the vocabulary; None takes the data's.

    Raises:
        ConfigurationError: for an unknown size, or an argument out of range.
    """

    def __init__(
        self,
        size: Literal["demo", "base", "large"] = "demo",
        layers: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        dropout: float | None = None,
        max_positions: int = 512,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        if size not in _SIZES:
            raise ConfigurationError(f'model.size is {size!r}: write "demo", "base" or "large".')
        given = {"layers": layers, "width": width, "heads": heads, "dropout": dropout}
        self._shape: dict[str, Any] = {
            name: value if value is not None else _SIZES[size][name] for name, value in given.items()
        }
        for name, value in (*self._shape.items(), ("max_positions", max_positions), ("vocab_size", vocab_size)):
            if name != "dropout" and value is not None and value < 1:
                raise ConfigurationError(f"model.{name} is {value}: write a whole number of at least 1.")
        if not 0 <= self._shape["dropout"] < 1:
            raise ConfigurationError(f"model.dropout is {self._shape['dropout']}: write a share from 0 to below 1.")
        if self._shape["width"] % self._shape["heads"]:
            raise ConfigurationError(
                f"model.width is {self._shape['width']}, no multiple of its {self._shape['heads']} heads: change one."
            )
        self.save_hyperparameters()
        self.network: BertAtPositions | None = None
        self.val_loss: Metric = MeanMetric()
        self.val_accuracy: Metric = MeanMetric()
        self.val_perplexity: Metric = Perplexity(ignore_index=IGNORED)

    # -- building ------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the layers, with random weights; does nothing where they are built."""
        if self.network is not None:
            return
        from transformers import BertConfig

        from examples.bert.network import BertAtPositions

        self.hparams["vocab_size"] = self._vocab_size()  # so that a checkpoint can be loaded without the data
        shape = self._shape
        self.network = BertAtPositions(
            BertConfig(
                vocab_size=self.hparams["vocab_size"],
                hidden_size=shape["width"],
                num_hidden_layers=shape["layers"],
                num_attention_heads=shape["heads"],
                intermediate_size=4 * shape["width"],
                hidden_dropout_prob=shape["dropout"],
                attention_probs_dropout_prob=shape["dropout"],
                max_position_embeddings=self.hparams["max_positions"],
            )
        )

    def _vocab_size(self) -> int:
        trainer = self._trainer
        theirs: int | None = getattr(getattr(trainer, "datamodule", None), "vocab_size", None)
        mine: int | None = self.hparams["vocab_size"]
        if mine is None:
            if theirs is None:
                raise ConfigurationError("the data does not say how large its vocabulary is: write model.vocab_size.")
            return theirs
        if theirs is not None and theirs > mine:
            raise ConfigurationError(
                f"model.vocab_size is {mine} but data.vocab_size is {theirs}: leave model.vocab_size out, or write at"
                f" least {theirs}."
            )
        return mine

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits [samples, places to guess, vocabulary] for ``positions`` [samples, places] of [samples, length] ids.

        Raises:
            ConfigurationError: for samples longer than the model has positions.
        """
        assert self.network is not None, "configure_model has not run"
        if input_ids.shape[1] > self.hparams["max_positions"]:
            raise ConfigurationError(
                f"the samples have {input_ids.shape[1]} tokens but model.max_positions is {self.hparams['max_positions']}:"
                " raise it, or shorten the stage's sequence_length."
            )
        logits: Tensor = self.network(input_ids, positions)
        return logits

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called before the weights are loaded."""
        embeddings = checkpoint.get("state_dict", {}).get("network.bert.embeddings.word_embeddings.weight")
        if embeddings is not None and len(embeddings) != self._vocab_size():
            raise ValueError(
                f"the checkpoint was trained on another text or vocabulary: it has {len(embeddings)} tokens, and this run"
                f" {self._vocab_size()}: use the same files and vocab_size, or leave the checkpoint out."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        logits = self(batch["input_ids"], batch["positions"])
        losses = _losses(logits, batch["targets"])
        hidden = (batch["targets"] != IGNORED).sum()
        loss = losses.sum() / hidden.clamp(min=1)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(logits))
        # What the loss is the mean of: the step is the mean over all hidden tokens of its batch.
        return {"loss": loss, "num_items": hidden}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(batch["input_ids"], batch["positions"]).float()
        targets = batch["targets"]
        counts = (targets != IGNORED).float()
        self.val_loss.update(_losses(logits, targets), counts.flatten())
        self.val_accuracy.update((logits.argmax(-1) == targets).float(), counts)
        self.val_perplexity.update(logits, targets)
        for metric in ("val_loss", "val_accuracy", "val_perplexity"):
            self.log(metric, getattr(self, metric), prog_bar=metric == "val_loss", batch_size=len(logits))


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats at every place, [samples · places]; 0 where the target is ignored."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
