"""Lightning callbacks for large-batch training, one a file."""

from __future__ import annotations

from lightning_scale.callbacks.batch_size_ramp import BatchSizeRamp
from lightning_scale.callbacks.exact_resume import ExactResume
from lightning_scale.callbacks.fail_together import FailTogether
from lightning_scale.callbacks.gradient_accumulation import GradientAccumulation
from lightning_scale.callbacks.legw import LEGWWarmup
from lightning_scale.callbacks.noise_scale import GradientNoiseScale
from lightning_scale.callbacks.nonfinite import NonfiniteMonitor
from lightning_scale.callbacks.progress_bar import StepProgressBar
from lightning_scale.callbacks.resume import Resume
from lightning_scale.callbacks.save_on_signal import SaveOnSignal
from lightning_scale.callbacks.stages import SequenceLengthStages
from lightning_scale.callbacks.trust_ratio import TrustRatioMonitor
from lightning_scale.callbacks.validate_every import ValidateEvery
from lightning_scale.schedule import Stage

__all__ = [
    "BatchSizeRamp",
    "ExactResume",
    "FailTogether",
    "GradientAccumulation",
    "GradientNoiseScale",
    "LEGWWarmup",
    "NonfiniteMonitor",
    "Resume",
    "SaveOnSignal",
    "SequenceLengthStages",
    "Stage",
    "StepProgressBar",
    "TrustRatioMonitor",
    "ValidateEvery",
]
