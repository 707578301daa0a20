"""What belongs to one run, and to no copy of it."""

from __future__ import annotations


class OfOneRun:
    """Copied or pickled, it is None: callbacks that hold it are copied as if they had not been used yet.

    Callbacks are copied and pickled in the middle of a run where a module keeps them among its hyper-parameters, and such an
    object leads to the whole Trainer.
    """

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()
