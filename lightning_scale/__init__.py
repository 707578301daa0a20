"""Large-batch training for PyTorch Lightning: optimizers, schedules, callbacks and strategies.

Nothing is imported here: ``import lightning_scale`` is quick, and Lightning, Triton and DeepSpeed are loaded only by
the subpackages that use them.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
