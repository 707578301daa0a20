"""The form of an error: one sentence that says what was wrong and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest


def refuses(*says: str, call: Callable[[], Any]) -> None:
    """``call`` raises a ValueError of one sentence that contains every part of ``says``."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert type(caught.value) is ValueError
    for part in says:
        assert part in text, f"{part!r} is not in: {text}"
    assert text.endswith("."), text
    assert "\n" not in text
    assert not re.search(r"[a-z)\"]\. [A-Z]", text), f"more than one sentence: {text}"
    # after the colon: the advice
    assert re.search(r": (write|give|leave) ", text), f"no advice in: {text}"
