"""What is trained under ZeRO, by name; and beside each the training on whole parameters that it must equal."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation, LEGWWarmup, SequenceLengthStages, Stage
from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from tests.distributed.sharded import MAKERS
from tests.distributed.zero_runs import Case, Directions, ResetAt, Sometimes, result

CPU = {"offload_optimizer": "cpu"}
OFFLOADED = {1: CPU, 2: CPU, 3: {**CPU, "offload_parameters": "cpu"}}


def _zero(stage: int, offload: bool = False, **zero_optimization: Any) -> dict[str, Any]:
    config = {"zero_optimization": zero_optimization} if zero_optimization else None
    return {"stage": stage, "config": config, **(OFFLOADED[stage] if offload else {})}


# Rates at which a rounding does not grow: with LARS at lr=2, one process that adds 12 + 12 gradients where it had added 24
# ends with statistics that differ by 1e-4 after ten steps; with these, by 2e-6.
OPTIMIZERS: dict[str, Any] = {
    **{name: make for name, make in MAKERS.items() if name.startswith("LAMB")},
    "LARS": lambda p: LARS(p, lr=0.2, weight_decay=0.1, trust_coefficient=0.1),
    "LARS-outside": lambda p: LARS(
        p, lr=0.2, nesterov=True, lr_in_momentum=False, max_grad_norm=0.5, trust_coefficient=0.1
    ),
    "LARS-momentum": MAKERS["LARS-momentum"],
    "LARS-decayed": lambda p: LARS(
        p,
        lr=0.1,
        momentum=0.5,
        weight_decay=0.1,
        trust_norm="decayed_gradient",
        trust_clip="larc",
        dampening=0.2,
        trust_coefficient=0.02,
    ),
    "LARS-memoryless": lambda p: LARS(p, lr=0.2, momentum=0.0, trust_coefficient=0.1),
    "LAMB-masters": lambda p: LAMB(p, lr=0.02, weight_decay=0.1, max_grad_norm=0.5, master_weights=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "LAMB8bit": lambda p: LAMB8bit(p, lr=0.02, weight_decay=0.1),
    "LAMB8bit-named": lambda p: LAMB8bit(p, lr=0.02, weight_decay=0.1, exclude=["*narrow"], eight_bit_except=["*wide"]),
    "LARS8bit": lambda p: LARS8bit(p, lr=0.2, weight_decay=0.1, trust_coefficient=0.1),
    "AdamW8bit": lambda p: AdamW8bit(p, lr=0.01),
    "SGD8bit": lambda p: SGD8bit(p, lr=0.1),
}


def _ramp() -> BatchSizeRamp:
    # An epoch of 118 samples ends with 6, a step of its own; four ranks share them, too.
    return BatchSizeRamp("0:8 24:12 60:16 92:20", lr_scaling="sqrt")


def _stages() -> SequenceLengthStages:
    stages = [
        Stage(6, 6, 24, lr=0.02, warmup="2 steps", decay_from="stage_start"),
        Stage(4, 4, 48, lr=0.01, warmup="1 steps", bias_correction_step="reset"),
    ]
    return SequenceLengthStages(stages)


LEFT_OUT = ("LAMB", "LARS", "LARS-memoryless", "LAMB8bit", "SGD8bit", "AdamW", "NAdam", "SGD")


def _cases() -> dict[str, Case]:
    cases = {f"{name}, stage {stage}": Case(name, _zero(stage)) for name in [*MAKERS, "AdamW"] for stage in (1, 2, 3)}
    for stage in (1, 2, 3):
        for name in ("LAMB", "LARS", "AdamW"):
            cases[f"{name}, offloaded, stage {stage}"] = Case(name, _zero(stage, offload=True))
        ramp = Case("LAMB", _zero(stage), _ramp, steps=12)
        cases |= {
            f"ramp, stage {stage}": ramp,
            f"ramp, offloaded, stage {stage}": replace(ramp, zero=_zero(stage, offload=True)),
            f"LEGW, stage {stage}": Case("LARS", _zero(stage), more=lambda: [LEGWWarmup(12, "6 steps")]),
            f"Trainer's clip, stage {stage}": Case("LARS", _zero(stage), fit={"gradient_clip_val": 0.1}),
            f"Trainer's clip, offloaded, stage {stage}": Case(
                "AdamW", _zero(stage, offload=True), fit={"gradient_clip_val": 0.1}
            ),
            f"dropped windows, stage {stage}": Case("LAMB", _zero(stage), lambda: GradientAccumulation(24, "drop")),
            f"dropped windows, offloaded, stage {stage}": Case(
                "LAMB", _zero(stage, offload=True), lambda: GradientAccumulation(24, "drop")
            ),
            f"NaN, stage {stage}": Case("LAMB", _zero(stage), nan_at=4),
            f"NaN, offloaded, stage {stage}": Case("LAMB", _zero(stage, offload=True), nan_at=4),
            f"small buckets, stage {stage}": Case("LAMB", _zero(stage, reduce_bucket_size=50)),
        }
        for name in LEFT_OUT:
            sometimes = Case(name, _zero(stage), None, make_network=Sometimes)
            offloaded = replace(sometimes, zero=_zero(stage, offload=True))
            cases |= {
                f"{name}, gradients left out, stage {stage}": sometimes,
                f"{name}, gradients left out, offloaded, stage {stage}": offloaded,
            }
        cases |= {
            f"stages of sequence lengths, stage {stage}": Case("LAMB", _zero(stage), _stages, staged=True),
            f"resets, stage {stage}": Case("LAMB", _zero(stage), more=lambda: [ResetAt(5)]),
            f"the Trainer's own accumulation, stage {stage}": Case(
                "LAMB", _zero(stage), None, fit={"accumulate_grad_batches": 2}, steps=6
            ),
        }
        for name in ("LAMB8bit", "LARS8bit", "AdamW8bit", "SGD8bit", "LAMB8bit-named"):
            eight_bit = Case(name, _zero(stage), None, make_network=Directions)
            cases[f"{name}, stage {stage}"] = eight_bit
            cases[f"{name}, offloaded, stage {stage}"] = replace(eight_bit, zero=_zero(stage, offload=True))
        half = {"precision": "bf16-true"}
        bf16 = Case("LAMB-masters", _zero(stage), None, half, half, make_network=Directions)
        cases[f"bfloat16, stage {stage}"] = bf16
        cases[f"bfloat16, offloaded, stage {stage}"] = replace(bf16, zero=_zero(stage, offload=True))
    cases |= {
        "round robin": Case("LAMB", _zero(2, round_robin_gradients=True)),
        "round robin, offloaded": Case("LARS", _zero(2, offload=True, round_robin_gradients=True)),
        "aligned parameters": Case("LAMB", _zero(1, parameter_alignment=True)),
        "sub-groups below a layer": Case("LAMB", _zero(3, sub_group_size=2)),
        "sub-groups below a layer, offloaded": Case("LARS", _zero(3, offload=True, sub_group_size=2)),
        "sub-groups of several layers": Case("LAMB", _zero(3, sub_group_size=20)),
        "no persistent parameters": Case("LAMB", _zero(3, stage3_param_persistence_threshold=0)),
        "built late, stage 2": Case("LAMB", _zero(2), late=True),
        "built late, stage 3": Case("LAMB", _zero(3), late=True),
        "built late, offloaded, stage 3": Case("LAMB", _zero(3, offload=True), late=True),
        "built in parts": Case("LAMB", {**_zero(3), "partition_while_building": True}, late=True),
        "built in parts, offloaded": Case("LAMB", {**_zero(3, True), "partition_while_building": True}, late=True),
        "DeepSpeed's clip": Case(
            "LARS", {"stage": 2, "config": {"gradient_clipping": 0.1}}, fit={"gradient_clip_val": 0.1}
        ),
    }
    return cases


CASES = _cases()
EVERY_STAGE = (
    *("LAMB", "LARS", "LAMB, offloaded", "ramp", "NaN", "LAMB8bit", "bfloat16"),
    *(f"{name}, gradients left out" for name in ("LAMB", "AdamW")),
)


def _each_kind() -> list[str]:
    """Those of `EVERY_STAGE` at every stage, each of the others at one, in turn."""
    kinds: dict[str, list[str]] = {}
    for name in CASES:
        kinds.setdefault(name.partition(", stage ")[0], []).append(name)
    chosen = [
        names if kind in EVERY_STAGE else [names[n % len(names)]] for n, (kind, names) in enumerate(kinds.items())
    ]
    return [name for names in chosen for name in names]


EACH_KIND = _each_kind()
THE_REST = [name for name in CASES if name not in EACH_KIND]
LAYERWISE = [name for name, case in CASES.items() if case.optimizer.startswith(("LAMB", "LARS"))]
FEW = [f"{name}, stage {stage}" for name in ("LAMB", "LARS", "ramp", "LAMB, offloaded") for stage in (1, 2, 3)]


@cache
def truth(name: str, folder: Path) -> dict[str, Any]:
    """The same training in one process."""
    return result(folder, replace(CASES[name], zero=None))
