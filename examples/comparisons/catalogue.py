"""What is compared with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

CONFIGS = "examples/comparisons/configs"
VOCABULARY = 4096


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    title: str
    """What tables and pictures call it."""
    arguments: tuple[str, ...]
    """Of ``lightning-scale fit``, or of `deepspeed_alone`."""
    processes: int = 1
    alone: bool = False
    """Whether DeepSpeed's engine runs it without Lightning and without this package's strategy."""
    killed_in_step: int = 0
    """Where it is killed, to go on from its last checkpoint; 0 for nowhere."""


@dataclass(frozen=True)
class Panel:
    """A part of a picture."""

    title: str
    variants: tuple[str, ...]
    """The first one is what the others are compared with."""
    x: Literal["steps", "samples"] = "samples"
    y: Literal["loss", "difference"] = "loss"
    """The training loss, or how far it is from the first variant's, on a logarithmic axis."""
    from_stage: int = 1
    """Leave out the stages before."""


@dataclass(frozen=True)
class Comparison:
    """Runs that go into one table and one picture."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    panels: tuple[Panel, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: tuple[str, ...] = field(default=())
    """Arguments of every run of a quick trial; none where there is no quick one."""


def _fit(
    name: str, title: str, *files: str, more: tuple[str, ...] = (), processes: int = 1, killed_in_step: int = 0
) -> Variant:
    configs = tuple(f"--config={file if '/' in file else f'{CONFIGS}/{file}'}" for file in files)
    ranks = (f"--trainer.devices={processes}",) if processes > 1 else ()
    return Variant(name, title, (*configs, *ranks, *more), processes, killed_in_step=killed_in_step)


def _of(title: str, optimizer: str, **options: float | str) -> Variant:
    """A run of the 8-bit comparison."""
    name = optimizer.rpartition(".")[2].lower()
    more = (f"--optimizer={optimizer}", *(f"--optimizer.{key}={value}" for key, value in options.items()))
    return _fit(name, title, "eight_bit.yaml", more=more)


def _pair(name: str, plain: str, **options: float | str) -> tuple[Variant, Variant]:
    return (
        _of(f"{name}, 32 bits", plain, **options),
        _of(f"{name}, 8 bits", f"lightning_scale.optim.{name}8bit", **options),
    )


def _alone(ranks: int) -> Variant:
    title = f"LAMB under DeepSpeed alone, ZeRO-2 on {ranks} ranks"
    return Variant(f"deepspeed_alone_{ranks}", title, ("--config", f"{CONFIGS}/zero.yaml"), ranks, alone=True)


TWO_STAGE = Comparison(
    "two_stage",
    "BERT in two stages: with and without the second warmup, and with a batch that grows",
    (
        _fit("second_warmup", "second warmup; batch 128", "two_stage.yaml", "two_stage_second_warmup.yaml"),
        _fit("one_warmup", "no second warmup; batch 128", "two_stage.yaml", "two_stage_one_warmup.yaml"),
        _fit(
            "second_warmup_4x", "second warmup; 4 times the rate", "two_stage.yaml", "two_stage_second_warmup_4x.yaml"
        ),
        _fit("one_warmup_4x", "no second warmup; 4 times the rate", "two_stage.yaml", "two_stage_one_warmup_4x.yaml"),
        _fit("ramp", "second warmup; batch 32, 64, 128", "two_stage.yaml", "two_stage_ramp.yaml"),
        _fit("batch_64", "second warmup; batch 64, the ramp's steps", "two_stage.yaml", "two_stage_batch_64.yaml"),
    ),
    (
        Panel("the second stage, at LEGW's rate", ("second_warmup", "one_warmup"), "steps", from_stage=2),
        Panel("the second stage, at four times that", ("second_warmup_4x", "one_warmup_4x"), "steps", from_stage=2),
        Panel("a batch that grows in the first stage", ("second_warmup", "ramp", "batch_64")),
    ),
)

EIGHT_BIT = Comparison(
    "eight_bit",
    "8-bit moments beside 32-bit ones",
    (
        *_pair("LAMB", "lightning_scale.optim.LAMB", lr=1e-2),
        *_pair("LARS", "lightning_scale.optim.LARS", lr=2e-2, momentum=0.9, trust_norm="momentum"),
        *_pair("AdamW", "torch.optim.AdamW", lr=2e-3, weight_decay=0.0),
        *_pair("SGD", "torch.optim.SGD", lr=0.1, momentum=0.9, weight_decay=0.0),
    ),
    tuple(Panel(name, (name.lower(), f"{name.lower()}8bit"), "steps") for name in ("LAMB", "LARS", "AdamW", "SGD")),
    quick=("--trainer.max_steps=12", "--lr_scheduler.total_iters=12"),
)

ZERO = Comparison(
    "zero",
    "ZeRO-2 with LAMB: this package's strategy, and DeepSpeed alone",
    (
        _fit("one_process", "one process", "zero.yaml"),
        _fit("ours_2", "ZeROStrategy, 2 ranks", "zero.yaml", "strategies/zero2.yaml", processes=2),
        _fit("ours_4", "ZeROStrategy, 4 ranks", "zero.yaml", "strategies/zero2.yaml", processes=4),
        _alone(2),
        _alone(4),
    ),
    (
        Panel("training loss", ("one_process", "ours_2", "ours_4", "deepspeed_alone_2", "deepspeed_alone_4"), "steps"),
        Panel(
            "its distance from one process's",
            ("one_process", "ours_2", "ours_4", "deepspeed_alone_2", "deepspeed_alone_4"),
            "steps",
            "difference",
        ),
    ),
    quick=("--trainer.max_steps=4",),
)

_CUT = ("at_once", "ours", "ours_2", "lightning", "lightning_2")

BATCHES = Comparison(
    "batches",
    "The same batch of 64 sentences, cut in several ways",
    (
        _fit("at_once", "64 at once, plain Lightning", "batches.yaml", more=("--data.micro_batch_size=64",)),
        _fit("ours", "GradientAccumulation, 16 times 4", "batches.yaml", "batches_ours.yaml"),
        _fit("ours_2", "GradientAccumulation, 8 times 4 on 2 ranks", "batches.yaml", "batches_ours.yaml", processes=2),
        _fit(
            "lightning",
            "accumulate_grad_batches, 16 times 4",
            "batches.yaml",
            more=("--trainer.accumulate_grad_batches=16",),
        ),
        _fit(
            "lightning_2",
            "accumulate_grad_batches, 8 times 4 on 2 ranks",
            "batches.yaml",
            more=("--trainer.accumulate_grad_batches=8",),
            processes=2,
        ),
    ),
    (
        Panel("training loss", _CUT, "steps"),
        Panel("its distance from that of 64 at once", _CUT, "steps", "difference"),
    ),
    quick=("--trainer.max_steps=4",),
)

_KILLED_IN = 100

RESUME = Comparison(
    "resume",
    f"Killed in step {_KILLED_IN}, and gone on from the checkpoint of step 90",
    (
        _fit("whole", "this package, not stopped", "resume.yaml", "resume_ours.yaml"),
        _fit("killed", "this package, killed", "resume.yaml", "resume_ours.yaml", killed_in_step=_KILLED_IN),
        _fit("lightning_whole", "Lightning alone, not stopped", "resume.yaml", "resume_lightning.yaml"),
        _fit(
            "lightning_killed",
            "Lightning alone, killed",
            "resume.yaml",
            "resume_lightning.yaml",
            killed_in_step=_KILLED_IN,
        ),
    ),
    (
        Panel("this package: training loss", ("whole", "killed"), "steps"),
        Panel("its distance from the run that was not stopped", ("whole", "killed"), "steps", "difference"),
        Panel("Lightning alone: training loss", ("lightning_whole", "lightning_killed"), "steps"),
        Panel(
            "its distance from the run that was not stopped",
            ("lightning_whole", "lightning_killed"),
            "steps",
            "difference",
        ),
    ),
)

COMPARISONS = {comparison.name: comparison for comparison in (TWO_STAGE, EIGHT_BIT, ZERO, BATCHES, RESUME)}
