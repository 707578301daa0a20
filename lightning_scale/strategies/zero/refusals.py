"""What cannot run, or was never tried, refused before DeepSpeed is started; what is not used, said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim.base import OptimizerBase

# Optimizers whose step needs a whole layer: its norms, or its shape.
_WHOLE_LAYERS = re.compile(
    r"(.*lamb(32bit|8bit)?|.*lars(32bit|8bit|w)?|larc|novograd|adafactor|came|sm3|shampoo|.*shampoo|soap|fromage|nero)",
    re.IGNORECASE,
)

_ZERO_PARTS = {
    "zenflow": "ZenFlow",
    "super_offload": "SuperOffload",
    "elastic_checkpoint": "elastic checkpoints",
    "zero_quantized_weights": "quantized weights (ZeRO++)",
    "zero_quantized_nontrainable_weights": "quantized weights (ZeRO++)",
    "zero_quantized_gradients": "quantized gradients (ZeRO++)",
}


def refuse_config(config: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for parts of a DeepSpeed configuration that a step was not tested with."""
    zero = config.get("zero_optimization", {})
    parts = [f"zero_optimization.{key} ({what})" for key, what in _ZERO_PARTS.items() if zero.get(key)]
    parts += [
        f"zero_optimization.{key} ({what})"
        for key, what in (("zero_hpz_partition_size", "hpZ"), ("mics_shard_size", "MiCS"))
        if zero.get(key, 1) > 1
    ]
    offload = zero.get("offload_optimizer") or {}
    if offload.get("super_offload"):
        parts.append("zero_optimization.offload_optimizer.super_offload (SuperOffload)")
    if offload.get("ratio", 1.0) != 1.0:
        parts.append("zero_optimization.offload_optimizer.ratio (partial offload)")
    checkpoint = config.get("checkpoint") or {}
    parts += [f"checkpoint.{key}" for key in ("writer", "load_universal") if checkpoint.get(key)]
    if config.get("datastates_ckpt"):
        parts.append("datastates_ckpt")
    if _enabled(config, "torch_autocast"):
        parts.append("torch_autocast")
    if _enabled(config, "fp16"):
        parts.append("fp16")
    if _enabled(config, "elasticity"):
        parts.append("elasticity")
    parts += [key for key in ("pipeline", "amp", "tensor_parallel", "compile") if _enabled(config, key)]
    if parts:
        raise ConfigurationError(
            f"the DeepSpeed configuration asks for {' and '.join(parts)}, which lightning_scale has not tested: leave that"
            " out (bf16-mixed and 32-true are the precisions that were tested)."
        )
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise ConfigurationError(
                f"the DeepSpeed configuration names {'an' if key == 'optimizer' else 'a'} {key}: leave it out, and return"
                " what you want from configure_optimizers."
            )


def _enabled(config: Mapping[str, Any], key: str) -> bool:
    part = config.get(key)
    return (
        bool(part.get("enabled", key in ("pipeline", "tensor_parallel"))) if isinstance(part, Mapping) else bool(part)
    )


def refuse_precision(precision: str) -> None:
    """Raises ConfigurationError for float16."""
    if precision in ("16-mixed", "16-true"):
        raise ConfigurationError(
            f'precision is "{precision}", and steps on float16 gradients under ZeRO are not tested: write "bf16-mixed" or'
            ' "32-true".'
        )


def refuse_optimizer(optimizer: Optimizer) -> None:
    """Raises ConfigurationError for an optimizer whose steps on ZeRO's slices would be silently wrong."""
    if isinstance(optimizer, OptimizerBase):
        return
    for cls in type(optimizer).__mro__:
        if _WHOLE_LAYERS.fullmatch(cls.__name__):
            raise ConfigurationError(
                f"{type(optimizer).__module__}.{type(optimizer).__name__} computes its step from whole layers, and ZeRO hands"
                " it slices that cut through them, so that its steps would be wrong without a word: use LAMB, LARS,"
                " LAMB8bit or LARS8bit of lightning_scale.optim, or a strategy that keeps layers whole (ddp)."
            )


def unused_option(optimizer: Optimizer, config: Mapping[str, Any]) -> str | None:
    """A warning where the optimizer is told to step on NaN, and DeepSpeed, which measures gradients, will not let it."""
    if not isinstance(optimizer, OptimizerBase) or optimizer.skip_nonfinite:
        return None
    zero, bf16 = config.get("zero_optimization", {}), config.get("bf16", {})
    by_test = bf16.get("enabled", False) and bf16.get("check_grad_overflow", True)
    by_norm = zero.get("compute_grad_norm", True) and not bf16.get("enabled", False)
    if zero.get("stage") != 3 and not by_test and not by_norm:
        return None
    return (
        "skip_nonfinite=False is not used under ZeRO: DeepSpeed itself leaves out every step with a NaN or Inf gradient (and"
        " skipped_steps does not count them). Leave skip_nonfinite out."
    )


def refuse_two_clips(optimizer: Optimizer, clip: float) -> None:
    """Raises ConfigurationError where optimizer and strategy would both clip by the global norm."""
    limit = getattr(optimizer, "max_grad_norm", None)
    if limit is not None and clip > 0:
        raise ConfigurationError(
            f"the optimizer clips gradients to max_grad_norm={limit}, and the Trainer's gradient_clip_val (or DeepSpeed's"
            f" gradient_clipping) to {clip}: keep one of the two."
        )


def refuse_unverified_nvme(wanted: bool, allowed: bool) -> str | None:
    """A warning for offload to NVMe; ConfigurationError where nobody asked for it twice."""
    seen = (
        "of DeepSpeed's NVMe offload this was seen: a weight came out wrong by 0.075 with torch's own AdamW where its"
        " gradient did not begin at a multiple of the I/O block (widths 1500 and 1025; 1024 and 2048 were right); below"
        " stage 3 it is CPU offload"
    )
    if wanted and not allowed:
        raise ConfigurationError(f'{seen}. Write "cpu", or add allow_unverified_nvme=True.')
    return f"{seen}. Compare a run's weights with one on CPU offload before you rely on it." if wanted else None
