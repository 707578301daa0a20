"""`docs/architecture.md`: the order of events is the one that Lightning has, and the pictures can be drawn."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from torch import Tensor

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.optim import LAMB
from tests.docs.pages import ROOT, blocks
from tests.toys import Tally, Vectors, trainer

PAGE = ROOT / "docs/architecture.md"
HOOKS = [name for name in dir(L.Callback) if name.startswith("on_") and "checkpoint" not in name]


class Noting(L.Callback):
    """Notes the name of every hook that is called."""

    def __init__(self, seen: list[str]) -> None:
        for name in HOOKS:
            setattr(self, name, lambda *args, name=name: seen.append(name))


class Module(Tally):
    """Notes what Lightning asks the module to do; the optimizer's step, where it has been taken."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__(40, lambda parameters: LAMB(parameters, lr=0.1))
        self.seen = seen

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append("training_step")
        return self.weight[batch_idx : batch_idx + 4].mean()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.seen.append("backward")
        super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("configure_gradient_clipping")
        super().configure_gradient_clipping(*args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.seen.append("optimizer_step")

    def lr_scheduler_step(self, *args: Any) -> None:
        self.seen.append("lr_scheduler_step")

    def configure_optimizers(self) -> Any:
        from torch.optim.lr_scheduler import LambdaLR

        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 1.0), "interval": "step"}]


def written(indent: int) -> list[str]:
    """The names that begin the lines of the first block with so many spaces before them, in order."""
    text = blocks(PAGE, "text")[0].text
    return re.findall(rf"^ {{{indent}}}(\w+)(?:  |$)", text, flags=re.MULTILINE)


def test_events_come_in_the_order_that_is_written(tmp_path: Path) -> None:
    seen: list[str] = []
    fit = trainer(tmp_path, [Noting(seen), GradientAccumulation(8)], max_steps=1, limit_val_batches=0)
    fit.fit(Module(seen), Vectors(4))
    ends = [place for place, name in enumerate(seen) if name == "on_train_batch_end"]
    assert len(ends) == 2  # a window of two micro-batches
    inside, last = written(8), written(12)
    assert inside[-1] == "on_train_batch_end" and len(inside) == 7 and len(last) == 4
    begins = seen.index("on_train_batch_start")
    assert seen[begins : ends[0] + 1] == inside
    later = [name for name in inside if name != "on_before_zero_grad"]  # "first alone"
    assert seen[ends[0] + 1 : ends[1] + 1] == [*later[:-1], *last, later[-1]]
    outside = [name for name in written(0) if name.startswith("on_")]
    assert [name for name in [*seen[:begins], *seen[ends[1] + 1 :]] if name in outside] == outside


def test_the_pictures_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the examples' packages are not installed")
    runpy.run_path(str(ROOT / "docs/make_architecture_pictures.py"))["main"](tmp_path)
    for picture in ("architecture_step.png", "architecture_window.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
