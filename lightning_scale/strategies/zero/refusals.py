"""What cannot run, or was never tried, refused before DeepSpeed is started; what is not used, said."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim.base import OptimizerBase

# Optimizers whose step needs a whole layer: its norms, or its shape; or all layers. Where a look at a few steps does not show it.
_WHOLE_LAYERS = re.compile(
    r"(.*lamb(32bit|8bit)?|.*lars(32bit|8bit|w)?|larc|novograd|adafactor|came|sm3|shampoo|.*shampoo|soap|fromage|nero"
    r"|.*muon.*|dion.*|scion.*|galore.*|fira|apollo|adammini|adam_mini|adalomo|adago|adanorm|adashift|swats|alig|ranger.*|adamp|sgdp"
    r"|stableadamw|prodigy.*|dadapt.*|l?dog|dowg|kron|.*psgd.*|splus)",
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
    if any(_WHOLE_LAYERS.fullmatch(cls.__name__) for cls in type(optimizer).__mro__) or steps_by_layer(optimizer):
        raise ConfigurationError(
            f"{type(optimizer).__module__}.{type(optimizer).__name__} computes its step from whole layers, or from all of them"
            " together, and ZeRO hands it slices that cut through them, so that its steps would be wrong without a word: use"
            " LAMB, LARS, LAMB8bit or LARS8bit of lightning_scale.optim, or a strategy that keeps layers whole (ddp)."
        )


def steps_by_layer(optimizer: Optimizer) -> bool:
    """Whether another optimizer of the class steps a small layer otherwise than the layer's two slices, each on its own.

    False, too, where none can be made of the options alone, and where two steps on the same numbers are not the same.
    """
    device = next(p.device for group in optimizer.param_groups for p in group["params"])
    draw = torch.Generator().manual_seed(0)
    weight, *gradients = torch.randn(4, 6, 4, generator=draw).to(device).unbind()

    def stepped(cut: Callable[[Tensor], Sequence[Tensor]]) -> Tensor:
        parts = [part.clone().requires_grad_() for part in cut(weight)]
        for number, part in enumerate(parts):
            own = _like(optimizer, part)
            for gradient in gradients:
                part.grad = cut(gradient)[number].clone()
                own.step()
        return torch.cat([part.detach().flatten() for part in parts])

    with torch.random.fork_rng([]), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            whole = stepped(lambda t: [t])
            if not torch.equal(whole, stepped(lambda t: [t])) or not whole.isfinite().all():
                return False
        except Exception:
            return False
        try:
            slices = stepped(lambda t: torch.split(t.flatten(), [10, 14]))
        except Exception:  # it wants matrices, say
            return True
    moved = (whole - weight.flatten()).abs().max()
    return bool((whole - slices).abs().max() > 1e-3 * moved)


def _like(optimizer: Optimizer, p: Tensor) -> Optimizer:
    """Another one of the class, of one parameter, with the options of the group that has most."""
    group = max(optimizer.param_groups, key=lambda group: sum(q.numel() for q in group["params"]))
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    options |= {"lr": 0.01} if "lr" in options else {}  # a warmup may have set it to 0
    takes = inspect.signature(type(optimizer)).parameters
    return type(optimizer)(
        [{"params": [p], **options}], **{key: value for key, value in options.items() if key in takes}
    )


_HELD_FROM_THE_START = (
    "leave requires_grad as True until on_train_start and turn it off there (what has no gradient is left alone), or take a"
    " strategy that keeps parameters whole (ddp)."
)


def refuse_frozen_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigurationError for a group without a parameter that is trained now, of which DeepSpeed would make nothing."""
    for number, group in enumerate(groups):
        if not any(p.requires_grad for p in group["params"]):
            raise ConfigurationError(
                f"the optimizer's group {number} has no parameter with requires_grad, and ZeRO holds what is trained when"
                f" training begins: leave the group out; or, to train it later, {_HELD_FROM_THE_START}"
            )


def refuse_unfrozen(frozen: Mapping[str, Tensor]) -> None:
    """Raises ConfigurationError where parameters that were frozen when ZeRO laid out what it trains are frozen no more."""
    names = [name for name, p in frozen.items() if p.requires_grad]
    if names:
        raise ConfigurationError(
            f"requires_grad of {_some(names)} was False when training began and is True now, and ZeRO, which holds what is"
            f" trained when training begins, would never step that: {_HELD_FROM_THE_START}"
        )


def refuse_added_group(*args: Any, **kwargs: Any) -> NoReturn:
    """Raises ConfigurationError: in place of ``add_param_group`` once training has begun, as finetuning callbacks call it."""
    raise ConfigurationError(
        "a parameter group was added in training, and ZeRO holds what the optimizer had when training began: give it all"
        f" parameters in configure_optimizers; to train some later, {_HELD_FROM_THE_START}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more parameters" if len(names) > 3 else "")


def refuse_averaging(trainer: L.Trainer, partitioned: bool, folders: bool) -> None:
    """Raises ConfigurationError for Lightning's WeightAveraging where weights are apart, or checkpoints would lose a copy."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if isinstance(callback, WeightAveraging) and partitioned:
            raise ConfigurationError(
                f"{name} averages whole parameters, and ZeRO stage 3 keeps a share of each on a rank: use stage 1 or 2."
            )
        if isinstance(callback, WeightAveraging) and folders and trainer.checkpoint_callbacks:
            raise ConfigurationError(
                f"{name} puts the average into a checkpoint in place of the weights, and DeepSpeed's folders have no place for"
                " it: write ZeROStrategy(..., save_distributed_checkpoint=False), or Trainer(enable_checkpointing=False)."
            )


def refuse_sync_batchnorm(module: nn.Module) -> None:
    """Raises ConfigurationError for layers whose statistics torch cannot synchronize on CPUs."""
    norms = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    if norms:
        raise ConfigurationError(
            f"sync_batchnorm=True asks for the statistics of {_some(norms)} over all ranks, and torch has SyncBatchNorm for GPUs"
            " alone: leave sync_batchnorm out on CPUs."
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


def unused_rounding(optimizer: Optimizer, stepped: Iterable[Tensor]) -> str | None:
    """A warning where the optimizer is told to round bfloat16 weights stochastically, and steps DeepSpeed's float32 ones."""
    if not isinstance(optimizer, OptimizerBase) or optimizer.weight_rounding == "nearest":
        return None
    if any(t.dtype == torch.bfloat16 for t in stepped):
        return None
    return (
        'weight_rounding="stochastic" is not used under ZeRO: the optimizer steps float32 weights, which DeepSpeed keeps and'
        " rounds to nearest for the model. Leave weight_rounding out."
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
