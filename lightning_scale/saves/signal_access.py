"""When a Trainer puts its signal handlers in place.

For signals, the only place that touches private parts of Lightning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import lightning.pytorch as L


def after_lightnings_handlers(trainer: L.Trainer, register: Callable[[], None]) -> None:
    """Call ``register()`` once, as soon as the present ``fit`` has put Lightning's handlers in place.

    That is before data are loaded and before the first hook of training. When it ends, Lightning puts back the handlers
    that were there before ``fit``.

    Raises:
        RuntimeError: where this version of Lightning lacks the part that is relied on; it names the version.
    """
    connector: Any = getattr(trainer, "_signal_connector", None)
    if not hasattr(connector, "register_signal_handlers"):
        raise RuntimeError(
            f"lightning {lightning.__version__} has no _SignalConnector.register_signal_handlers, which lightning_scale"
            " relies on: use a version of lightning that its metadata names, or report this."
        )

    def register_signal_handlers() -> None:
        del connector.register_signal_handlers  # the class's own again
        connector.register_signal_handlers()
        register()

    connector.register_signal_handlers = register_signal_handlers
