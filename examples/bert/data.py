"""Text for masked-language-model pretraining, stage after stage."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from examples.bert import prepared
from examples.bert.baseline import frequency_guess_loss, hidden_tokens
from examples.bert.masking import count_masked
from examples.bert.packing import PackedSamples
from examples.bert.samples import MaskedSamples, RankShare
from examples.bert.token_file import TokenFile
from examples.bert.tokenizer import CLS_ID, SPECIAL_TOKENS
from lightning_scale.data import ResumableBatchSampler, StageData
from lightning_scale.errors import ConfigurationError

TRAINING, VALIDATION = 0, 1  # keep their masks apart


class TextData(L.LightningDataModule):
    """Packed, dynamically masked samples of a text; a share of its documents is held out for validation.

    Order and masks are functions of the seed, the stage and the samples consumed, so a resumed run, or one with another
    number of workers, sees the same. The held-out masks never change. It is the library's callbacks that count the
    samples consumed: without any of them (`GradientAccumulation` is enough) a run resumed inside an epoch begins it anew.

    A batch is a dict of int64 tensors: "input_ids" [samples, sequence length], "positions" and "targets" [samples, places
    to guess]; a target of -100 does not count.

    Args:
        files: UTF-8 text files, documents separated by blank lines; None for CPython's own documentation.
        vocab_size: Tokens in the WordPiece vocabulary, 16 to 65,536.
        sequence_length: Tokens in a sample, where no stage says otherwise.
        micro_batch_size: Samples in one rank's micro-batch, where no stage says otherwise; for validation too.
        validation_share: Share of the documents that is held out.
        num_workers: Worker processes of each loader.
        seed: Which order and which masks.
        cache_dir: Where tokenizer and tokens are written, and reused from while text and settings stay the same.

    Raises:
        ConfigurationError: for an argument out of range.
    """

    def __init__(
        self,
        files: list[str] | None = None,
        vocab_size: int = 4096,
        sequence_length: int = 128,
        micro_batch_size: int = 32,
        validation_share: float = 0.15,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str = "runs/bert",
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("vocab_size", vocab_size, 16, 65_536),
            ("sequence_length", sequence_length, 3, None),
            ("micro_batch_size", micro_batch_size, 1, None),
            ("num_workers", num_workers, 0, None),
            ("seed", seed, 0, None),
        ):
            if value < low or (high is not None and value > high):
                upper = f" and at most {high}" if high is not None else ""
                raise ConfigurationError(f"data.{name} is {value}: write a number of at least {low}{upper}.")
        if not 0 < validation_share < 1:
            raise ConfigurationError(f"data.validation_share is {validation_share}: write a share between 0 and 1.")
        self.files = files
        self.vocab_size = vocab_size
        self.sequence_length = sequence_length
        self.micro_batch_size = micro_batch_size
        self.validation_share = validation_share
        self.num_workers = num_workers
        self.seed = seed
        self.cache_dir = cache_dir
        self.stage: StageData | None = None
        """The stage being served; None where training has no stages."""
        self._text: prepared.PreparedText | None = None
        self._guess_losses: dict[int, float] = {}

    # -- what Lightning calls ------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """On one process of each node: make tokenizer and tokens, unless they are there."""
        prepared.prepare(self.cache_dir, self.files, self.vocab_size, self.validation_share)

    def setup(self, stage: str) -> None:
        self._text = prepared.load(self.cache_dir)

    def train_dataloader(self) -> DataLoader[Any]:
        stage = self.stage
        samples = self._samples(self.text.training, "training")
        dataset = MaskedSamples(samples, len(self.text.training_counts), (self.seed, TRAINING, self._stage_index))
        sampler = ResumableBatchSampler(
            len(dataset),
            (stage.micro_batch_size if stage is not None else None) or self.micro_batch_size,
            seed=self.seed,
            epoch_samples=stage.samples if stage is not None else None,
            samples_consumed=stage.samples_consumed if stage is not None else 0,
            positions=True,
        )
        rank_zero_info(
            f"training text: {len(samples.stream):,} tokens, {len(samples):,} samples of {samples.sequence_length}"
            f" ({samples.tail} tokens at the end fill none)"
        )
        return DataLoader(dataset, batch_sampler=sampler, num_workers=self.num_workers, pin_memory=_has_cuda())

    def val_dataloader(self) -> DataLoader[Any]:
        dataset = self.held_out()
        return DataLoader(
            dataset,
            sampler=RankShare(len(dataset)),
            batch_size=(self.stage.micro_batch_size if self.stage is not None else None) or self.micro_batch_size,
            num_workers=self.num_workers,
            pin_memory=_has_cuda(),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.text.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["fingerprint"] != self.text.fingerprint:
            raise ConfigurationError(
                f"the checkpoint was trained on another text or vocabulary than {self.cache_dir} holds now: use the same"
                " files, vocab_size, validation_share (and, for the default text, the same Python version), or start anew."
            )

    # -- what callbacks call -------------------------------------------------------------------------------------------

    def set_stage(self, stage: StageData) -> None:
        """Serve this stage from the next ``train_dataloader()`` and ``val_dataloader()`` on."""
        self.stage = stage

    def example_sample(self) -> dict[str, Tensor]:
        """A sample of the present stage without text, for `lightning-scale plan`."""
        places = torch.zeros(count_masked(self._present_length), dtype=torch.int64)
        ids = torch.zeros(self._present_length, dtype=torch.int64)
        return {"input_ids": ids, "positions": places, "targets": places}

    def frequency_guess_loss(self) -> float:
        """The loss, on the present stage's held-out hidden tokens, of guessing by the training text's frequencies."""
        length = self._present_length
        if length not in self._guess_losses:
            targets = hidden_tokens(self.held_out())
            self._guess_losses[length] = frequency_guess_loss(self.text.training_counts, targets, len(SPECIAL_TOKENS))
        return self._guess_losses[length]

    def held_out(self) -> MaskedSamples:
        """The held-out samples of the present stage."""
        samples = self._samples(self.text.validation, "held-out")
        return MaskedSamples(samples, len(self.text.training_counts), (self.seed, VALIDATION), held_out=True)

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def text(self) -> prepared.PreparedText:
        """Tokenizer and tokens, after ``setup``."""
        if self._text is None:
            self.setup("fit")
            assert self._text is not None
        return self._text

    @property
    def _present_length(self) -> int:
        return self.stage.sequence_length if self.stage is not None else self.sequence_length

    @property
    def _stage_index(self) -> int:
        return self.stage.index if self.stage is not None else 0

    def _samples(self, tokens: TokenFile, name: str) -> PackedSamples:
        samples = PackedSamples(tokens, self._present_length, CLS_ID)
        if not len(samples):
            raise ConfigurationError(
                f"the {name} text has {len(tokens)} tokens, too few for one sample of {samples.sequence_length}: use more"
                " text, another validation_share, or a shorter sequence_length."
            )
        return samples


def _has_cuda() -> bool:
    return torch.cuda.is_available()
