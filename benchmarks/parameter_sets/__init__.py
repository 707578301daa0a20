"""The shapes that steps are measured on, by name."""

from __future__ import annotations

from benchmarks.parameter_sets.bert_large import bert_large
from benchmarks.parameter_sets.many import many
from benchmarks.parameter_sets.matrices import matrices
from benchmarks.parameter_sets.resnet50 import resnet50
from benchmarks.parameter_sets.small import small
from benchmarks.parameter_sets.tiny import tiny

__all__ = ["SETS", "Shape"]

Shape = tuple[int, ...]

SETS: dict[str, list[Shape]] = {
    "bert-large": bert_large(),
    "cpu": matrices(),
    "small": small(),
    "many": many(),
    "resnet50": resnet50(),
    "tiny": tiny(),
}
