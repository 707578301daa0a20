"""Scikit-learn's digits, cut into the study's three parts."""

from __future__ import annotations

from examples.resnet.digits import CLASSES, LabelledImages, load_digits
from examples.scaling_study.tasks.task import Samples, TaskData

TRAINING, TUNING, TEST = 1280, 157, 360
"""Training is a multiple of 256, so that an even number of passes is whole batches of up to 512. The last 360 of the file (a
fifth) are by other writers for the most part."""


def digits(rows_as_sequence: bool) -> TaskData:
    """The digits.

    Args:
        rows_as_sequence: Images as [samples, 8 rows, 8 pixels]; otherwise [samples, 1, 8, 8].
    """
    training, tuning, test = (_samples(part, rows_as_sequence) for part in load_digits(TRAINING, TUNING, TEST))
    return TaskData(training, TRAINING, tuning, test, CLASSES)


def _samples(part: LabelledImages, rows_as_sequence: bool) -> Samples:
    return Samples((part.images.squeeze(1) if rows_as_sequence else part.images,), part.labels)
