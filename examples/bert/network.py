"""BERT that predicts only where something is hidden. Imports transformers: import it where it is used."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertForMaskedLM


class BertAtPositions(BertForMaskedLM):  # type: ignore[misc, no-untyped-call]
    """transformers' BertForMaskedLM, its parameters and their names, with another forward.

    The prediction over the vocabulary is computed for the hidden places alone: 15 % of the work.
    """

    def forward(self, input_ids: Tensor, positions: Tensor, **_: Any) -> Tensor:
        """Predict the tokens at some places.

        Args:
            input_ids: [samples, sequence length].
            positions: [samples, places to guess].

        Returns:
            [samples, places to guess, vocabulary], logits.
        """
        hidden = self.bert(input_ids).last_hidden_state  # [samples, sequence length, width]
        places = positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        logits: Tensor = self.cls(hidden.gather(1, places))
        return logits
