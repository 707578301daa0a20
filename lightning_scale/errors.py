"""The one error for what a user configured wrongly."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """Something the user configured cannot run: one sentence that says what was wrong and what to write instead.

    Raised before training starts. The ``lightning-scale`` command prints the sentence alone, without a traceback.
    """
