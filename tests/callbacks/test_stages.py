"""Stages: length, batch, rate and optimizer state at every step, and a resume at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.callbacks import LEGWWarmup, SequenceLengthStages, Stage
from lightning_scale.optim import LAMB
from lightning_scale.window import LoopAdapter
from tests.toys import Net, Recorder, Vectors, trainer

FIRST = Stage(sequence_length=8, steps=6, batch_size=16, micro_batch_size=4)
SECOND = Stage(16, 5, 8, 8, lr=0.1, warmup="40%", decay_from="stage_start", bias_correction_step="reset")


def lamb(module: L.LightningModule) -> Any:
    return LAMB(module.named_parameters(), lr=0.01)


class SaveOnce(L.Callback):
    """Saves where one hook comes after one step."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.hook, self.step, self.path = hook, step, path
        setattr(self, hook, self._save)

    def _save(self, fit: L.Trainer, *args: Any) -> None:
        if fit.global_step == self.step and not self.path.exists():
            fit.save_checkpoint(self.path)


def run(root: Path, *extra: L.Callback, ckpt: Path | None = None, **options: Any) -> tuple[Net, Vectors, L.Trainer]:
    L.seed_everything(0, verbose=False)
    module, data = Net(lamb), Vectors()
    fit = trainer(root, [LEGWWarmup(8, "2 steps"), SequenceLengthStages([FIRST, SECOND]), *extra], **options)
    fit.fit(module, data, ckpt_path=ckpt)
    return module, data, fit


def test_rates_are_those_of_the_plan_at_every_step(tmp_path: Path) -> None:
    module, _, fit = run(tmp_path)
    # Stage 1 takes LEGW's: base 0.01, twice the base batch, 2 steps of warmup, then linear to 0 over the 4 left.
    first = [0.01 * 2**0.5 * f for f in (1 / 2, 1, 3 / 4, 2 / 4, 1 / 4, 0)]
    # Stage 2: W = 40 % of 5; t/W while t < W; after it 1 - t/5.
    second = [0.1 * f for f in (1 / 2, 3 / 5, 2 / 5, 1 / 5, 0)]
    assert [lr for _, lr, _ in module.steps] == pytest.approx([*first, *second], rel=1e-12)
    assert fit.global_step == fit.max_steps == 11


def test_the_data_is_told_of_each_stage(tmp_path: Path) -> None:
    _, data, _ = run(tmp_path)
    told = [(s.index, s.sequence_length, s.micro_batch_size, s.samples, s.samples_consumed) for s in data.stages]
    assert told == [(0, 8, 4, 96, 0), (1, 16, 8, 40, 0)]


def test_what_is_logged(tmp_path: Path) -> None:
    logger = Recorder(tmp_path)
    module, _, _ = run(tmp_path, logger=logger, log_every_n_steps=1)
    assert list(logger.values("stage").items()) == list(enumerate([1] * 6 + [2] * 5))
    assert list(logger.values("sequence_length").values()) == [8] * 6 + [16] * 5
    assert list(logger.values("batch_size").values()) == [16] * 6 + [8] * 5
    assert list(logger.values("lr").values()) == pytest.approx([lr for _, lr, _ in module.steps], rel=1e-6)


@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_end", "on_train_epoch_start"]
)
def test_a_resume_at_every_step_has_the_bits_of_the_whole_run(tmp_path: Path, hook: str) -> None:
    whole, _, reference = run(tmp_path)
    resumed = 0
    for step in range(1, 11):
        path = tmp_path / f"{step}.ckpt"
        run(tmp_path, SaveOnce(hook, step, path))
        if not path.exists():
            continue
        module, data, fit = run(tmp_path, ckpt=path)
        assert module.steps == whole.steps[step:]
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), whole.parameters(), strict=True))
        assert data.stages[0].index == (0 if step < 6 else 1)
        assert data.stages[0].samples_consumed == (16 * step if step < 6 else 8 * (step - 6))
        for ours, theirs in zip(counters(fit), counters(reference), strict=True):
            assert ours == theirs
        resumed += 1
    assert resumed == (10 if hook == "on_train_batch_end" else 1)


def counters(fit: L.Trainer) -> tuple[Any, ...]:
    loop = fit.fit_loop.epoch_loop
    return fit.global_step, fit.current_epoch, loop._batches_that_stepped, loop.batch_progress.total.completed


def test_the_bias_correction_starts_again_and_moments_are_kept(tmp_path: Path) -> None:
    seen: dict[int, tuple[float, float]] = {}

    class Look(L.Callback):
        def on_before_optimizer_step(self, fit: L.Trainer, module: Any, optimizer: Any) -> None:
            state = optimizer.state[module.net[0].weight]
            if state:
                seen[fit.global_step] = (float(state["step"]), float(state["exp_avg"].norm()))

    run(tmp_path, Look())
    assert [seen[t][0] for t in range(1, 11)] == [1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    assert seen[6][1] > 0


def test_moments_can_be_reset(tmp_path: Path) -> None:
    norms = {}

    class Look(L.Callback):
        def on_before_optimizer_step(self, fit: L.Trainer, module: Any, optimizer: Any) -> None:
            norms[fit.global_step] = float(optimizer.state[module.net[0].weight].get("exp_avg", torch.zeros(1)).norm())

    second = Stage(16, 2, 8, 8, moments="reset")
    trainer(tmp_path, [SequenceLengthStages([FIRST, second]), Look()]).fit(Net(lamb), Vectors())
    assert norms[5] > 0
    assert norms[6] == 0


def test_a_loader_shorter_or_longer_than_the_stage(tmp_path: Path) -> None:
    class OnePass(Vectors):
        """Ignores how long the stage is: 25 micro-batches of 4 a pass."""

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(self.dataset, batch_size=4)

    for steps in (3, 11):
        module = Net(lamb)
        fit = trainer(tmp_path, [SequenceLengthStages([Stage(8, steps, 20, 4), Stage(16, 2, 4, 4)])])
        fit.fit(module, OnePass())
        assert [s for s, _, _ in module.steps] == list(range(steps + 2))
        assert fit.callback_metrics["stage"] == 2
    assert fit.current_epoch == 4  # 5 steps a pass: three passes, the last cut short, and the second stage


def test_groups_keep_their_proportion_to_a_stages_rate(tmp_path: Path) -> None:
    seen = []

    class Both(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    def two_groups(module: Any) -> Any:
        layers = list(module.parameters())
        return LAMB([{"params": layers[:2]}, {"params": layers[2:], "lr": 0.002}], lr=0.001)

    stage = Stage(8, 2, 4, 4, lr=0.5, decay="constant")
    trainer(tmp_path, [SequenceLengthStages([stage])]).fit(Both(two_groups), Vectors())
    assert seen == [[0.5, 1.0], [0.5, 1.0]]


def test_a_stages_rate_does_not_depend_on_the_lr_of_an_older_configuration(tmp_path: Path) -> None:
    def run_with(lr: float, ckpt: Path | None, save: Path | None) -> Net:
        module = Net(lambda m: LAMB(m.named_parameters(), lr=lr))
        more = [SaveOnce("on_train_batch_end", 2, save)] if save else []
        fit = trainer(tmp_path, [SequenceLengthStages([Stage(8, 4, 4, 4, lr=0.1, decay="constant")]), *more])
        fit.fit(module, Vectors(), ckpt_path=ckpt)
        return module

    run_with(0.01, None, tmp_path / "two.ckpt")
    assert [lr for _, lr, _ in run_with(0.02, tmp_path / "two.ckpt", None).steps] == pytest.approx([0.1, 0.1])


def test_a_second_fit_goes_on_in_its_stage(tmp_path: Path) -> None:
    """Fit 1 is stopped after 12 samples; the stage's batch is 16 from there on."""
    sizes: list[int] = []
    again: list[bool] = []

    class Stop(L.Callback):
        def on_train_batch_end(self, fit: L.Trainer, *args: Any) -> None:
            fit.should_stop = sizes == [4, 4, 4] and not again

        def on_before_optimizer_step(self, fit: L.Trainer, *args: Any) -> None:
            sizes.append(next(c for c in fit.callbacks if isinstance(c, LoopAdapter)).batch_size)

    fit = trainer(tmp_path, [SequenceLengthStages([Stage(8, 6, "0:4 12:16", 4)]), Stop()])
    module = Net(lamb)
    fit.fit(module, Vectors())
    assert sizes == [4, 4, 4]
    again.append(True)
    fit.should_stop = False
    fit.fit(module, Vectors())
    assert sizes == [4, 4, 4, 16, 16, 16]


def test_schedulers_are_told_the_stages_steps(tmp_path: Path) -> None:
    def one_cycle(module: L.LightningModule) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        steps = int(module.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module, data = Net(one_cycle), Vectors()
    stages = [Stage(8, 6, 16, 4, decay="constant"), Stage(16, 5, 8, 8, decay="constant")]
    trainer(tmp_path, [SequenceLengthStages(stages)]).fit(module, data)
    assert len(module.steps) == 11
    assert module.steps[-1][1] == pytest.approx(4e-6, rel=0.01)  # OneCycleLR's last rate
    assert [stage.index for stage in data.stages] == [0, 1]


def test_fast_dev_run_takes_its_own_few_steps(tmp_path: Path) -> None:
    module = Net(lamb)
    trainer(tmp_path, [SequenceLengthStages([FIRST, SECOND])], fast_dev_run=2).fit(module, Vectors())
    assert len(module.steps) <= 2


def test_validation_comes_at_a_stages_end_also_where_the_loader_is_longer(tmp_path: Path) -> None:
    class Longer(Vectors):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(self.dataset, batch_size=4)

    at = []

    class Look(L.Callback):
        def on_validation_end(self, fit: L.Trainer, *args: Any) -> None:
            at.append(fit.global_step)

    fit = trainer(tmp_path, [SequenceLengthStages([Stage(8, 3, 8, 4), Stage(16, 2, 8, 4)]), Look()])
    fit.fit(Net(lamb), Longer())
    assert at == [3, 5]


def test_bert_large_gets_the_recipes_rate_at_every_step() -> None:
    """NVIDIA's phases, written out here once more: lr p/w while p < w, then lr sqrt(1-p)."""
    stages = SequenceLengthStages(
        [
            Stage(128, 7038, 65536, 64, lr=6e-3, warmup="28.43%", power=0.5, decay_from="stage_start"),
            Stage(512, 1563, 32768, 8, lr=4e-3, warmup="12.8%", power=0.5, decay_from="stage_start"),
        ]
    )
    rates = [stages.plan.lr(t) for t in range(1, 7038 + 1563 + 1)]
    expected = [
        peak * (t / T / w if t / T < w else (1 - t / T) ** 0.5)
        for T, peak, w in ((7038, 6e-3, 0.2843), (1563, 4e-3, 0.128))
        for t in range(1, T + 1)
    ]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert f"{rates[1999]:.3e} {rates[2000]:.3e} {rates[7037]}" == "5.997e-03 5.076e-03 0.0"
    assert stages.schedule(7037).batch_size(0) == 65536
    assert stages.schedule(7038).batch_size(0) == 32768
