"""DeepSpeed's configuration: what the strategy needs, merged with what the user wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from lightning_scale.errors import ConfigurationError

Offload = Literal["cpu", "nvme"]
Config = dict[str, Any]


def read(config: Mapping[str, Any] | str | Path | None) -> Config:
    """The user's configuration: a mapping, the path of a JSON file, or nothing.

    Raises:
        ConfigurationError: for a file that is not there or holds something else.
    """
    if config is None or isinstance(config, Mapping):
        return deepcopy(dict(config or {}))
    path = Path(config)
    if not path.is_file():
        raise ConfigurationError(f"there is no DeepSpeed configuration {path}: give an existing JSON file, or a dict.")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigurationError(f"the DeepSpeed configuration {path} is not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"the DeepSpeed configuration {path} is a {type(found).__name__}: it must be an object."
        )
    return found


def offload_device(given: Offload | None, config: Mapping[str, Any], key: str) -> Offload | None:
    """Where something is offloaded to: as the argument says, else as the user's configuration does."""
    if given is not None:
        return given
    device = config.get("zero_optimization", {}).get(key, {}).get("device")
    return device if device in ("cpu", "nvme") else None


def needed(
    stage: int, offload_optimizer: Offload | None, offload_parameters: Offload | None, nvme_path: str | None
) -> Config:
    """What the strategy relies on, or was told by its arguments."""
    zero: Config = {"stage": stage}
    if offload_optimizer is not None:
        zero["offload_optimizer"] = {"device": offload_optimizer}
    if offload_parameters is not None:
        zero["offload_param"] = {"device": offload_parameters}
    if nvme_path is not None:
        for key, device in (("offload_optimizer", offload_optimizer), ("offload_param", offload_parameters)):
            if device == "nvme":
                zero[key]["nvme_path"] = nvme_path
    if stage < 2:
        zero["overlap_comm"] = False  # refused for windows that the strategy closes
    return {
        "zero_optimization": zero,
        # The strategy's own checks are stricter: DeepSpeed knows no layer-wise optimizer on slices that is right.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # The window says when there is a step, and what the loss is divided by.
        "managed_gradient_accumulation": False,
        "gradient_accumulation_steps": 1,
    }


def merged(ours: Config, theirs: Mapping[str, Any], path: str = "") -> tuple[Config, list[str]]:
    """Both, where ``ours`` wins; and sentences on what of ``theirs`` lost."""
    result, lost = deepcopy(dict(theirs)), []
    for key, value in ours.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and isinstance(theirs.get(key), Mapping):
            result[key], more = merged(value, theirs[key], f"{name}.")
            lost += more
            continue
        if key in theirs and theirs[key] != value:
            lost.append(f"{name} is {value!r}, not {theirs[key]!r}")
        result[key] = deepcopy(value)
    return result, lost
