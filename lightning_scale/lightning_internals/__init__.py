"""What this package touches of Lightning's own inside, and nothing else of this package does.

`names` is the list of all of it; it is checked when this folder is imported, so that a version of Lightning without one of
these names ends in one sentence and not in a training that does something else. The other modules use the names.
"""

from __future__ import annotations

from lightning_scale.lightning_internals.checkpoints import CheckpointAccess, load_file
from lightning_scale.lightning_internals.loop import LoopAccess
from lightning_scale.lightning_internals.loop_state import LoopState
from lightning_scale.lightning_internals.processes import after_lightnings_handlers, launched_processes
from lightning_scale.lightning_internals.sharding import evaluate_without_inference_mode, materialize

__all__ = [
    "CheckpointAccess",
    "LoopAccess",
    "LoopState",
    "after_lightnings_handlers",
    "evaluate_without_inference_mode",
    "launched_processes",
    "load_file",
    "materialize",
]
