"""The study's tasks, by name."""

from __future__ import annotations

from collections.abc import Callable

from examples.scaling_study.tasks.bert import bert_task
from examples.scaling_study.tasks.lstm import lstm_task
from examples.scaling_study.tasks.residual import residual_task
from examples.scaling_study.tasks.task import Size, Task

TASKS: dict[str, Callable[[Size], Task]] = {"residual": residual_task, "lstm": lstm_task, "bert": bert_task}
