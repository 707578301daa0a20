"""Which of this library's optimizers are measured: all of its registry, and the forms that are other algorithms."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_scale.optim.registry import REGISTRY, Entry

_FORMS = {"": "", "momentum": " on the momentum"}
"""By the name that the registry has for a form: what follows the optimizer's name in that of a row. In 8 bits only what users get
who write nothing is measured."""


def _rows() -> Iterator[tuple[str, tuple[Entry, str]]]:
    for entry in REGISTRY.values():
        for form, suffix in _FORMS.items():
            if not form or (form in entry.forms and not entry.eight_bit):
                yield entry.name + suffix, (entry, form)


ROWS: dict[str, tuple[Entry, str]] = dict(_rows())
"""By the name of a row: the optimizer and which of its forms."""


def simplest() -> Entry:
    """The optimizer of the fewest passes and moments, which stands for all of them where one is enough."""
    return min(REGISTRY.values(), key=lambda entry: (len(entry.passes), len(entry.moments)))
