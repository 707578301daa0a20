"""What guessing by word frequency costs: the number that a trained model has to beat."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from examples.bert.masking import IGNORED


def frequency_guess_loss(training_counts: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], first: int) -> float:
    """Mean cross-entropy, in nats, of always predicting each token with its share of the training text.

    The share is (count + 1) / (total + tokens), add-one smoothing, for a held-out token may be new.

    Args:
        training_counts: [vocabulary], occurrences in the training text.
        targets: Hidden tokens of the held-out samples, of any shape; ignored places do not count.
        first: The first id that can be hidden: ids below it (special tokens) get no probability.

    Raises:
        ValueError: where no target counts.
    """
    hidden = targets[targets != IGNORED]
    if not hidden.size:
        raise ValueError("no target counts: give at least one hidden token.")
    smoothed = training_counts[first:] + 1.0
    log_share = np.log(smoothed / smoothed.sum())
    return float(-log_share[hidden - first].mean())


def hidden_tokens(samples: Any) -> npt.NDArray[np.int64]:
    """The targets of all samples of a `MaskedSamples`' first pass: [samples, places to guess]."""
    return np.stack([samples[i]["targets"].numpy() for i in range(len(samples))])
