"""The list of all names of DeepSpeed's that may change without notice and that this folder relies on.

DeepSpeed need not be installed: the list is checked where a strategy is made, and what only instances have where they are
taken over. With it, DeepSpeed's process group on CPUs without a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lightning_scale.lightning_internals.checks import Name, check_classes, check_instance

ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
STAGE12 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
STAGE3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
OFFLOADED = f"{STAGE12}(cpu_offload=True)"
BF16 = "deepspeed.runtime.bf16_optimizer:BF16_Optimizer"
PARAMETER = "deepspeed:Parameter"
CHECKPOINT_ENGINE = "deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine:TorchCheckpointEngine"
COMMUNICATION = "deepspeed.comm.torch"

_STORED = (
    Name("deepspeed.runtime.zero.config", "ZeroStageEnum", "read", "folders hold the stage"),
    Name("deepspeed.runtime.fp16.loss_scaler", "LossScaler", "read", "folders hold a loss scale of 1"),
    Name("deepspeed.utils.tensor_fragment", "fragment_address", "read", "folders hold where parameters lie"),
)

NAMES: tuple[Name, ...] = (
    # -- the engine ----------------------------------------------------------------------------------------------------
    Name(ENGINE, "managed_gradient_accumulation", "called", "the window says when there is a step"),
    Name(ENGINE, "zero_optimization_partition_weights", "called", "whether weights are apart"),
    Name(ENGINE, "_zero3_consolidated_16bit_state_dict", "called", "whole weights for a file"),
    Name(ENGINE, "optimizer", "read", "what steps the flat tensors", on_instance=True),
    Name(ENGINE, "checkpoint_engine", "read", "what loads folders", on_instance=True),
    Name(CHECKPOINT_ENGINE, "load", "replaced", "run nothing of a folder"),
    *_STORED,
    Name(
        COMMUNICATION, "build_shm_op", "replaced", "spare a minute's compiling that serves nothing here", needed=False
    ),
    # -- ZeRO-1 and ZeRO-2 ---------------------------------------------------------------------------------------------
    Name(STAGE12, "step", "replaced", "take the mean and clip before anything is computed"),
    Name(STAGE12, "zero_grad", "replaced", "forget what a window that is given up has left"),
    Name(STAGE12, "_wait_for_offload_copies", "called", "offloaded gradients are complete"),
    Name(STAGE12, "optimizer", "read", "the user's", on_instance=True),
    Name(STAGE12, "bit16_groups", "read", "a group's parameters", on_instance=True),
    Name(STAGE12, "bit16_groups_flat", "read", "the tensor that they lie in", on_instance=True),
    Name(STAGE12, "parallel_partitioned_bit16_groups", "read", "its slices", on_instance=True),
    Name(STAGE12, "single_partition_of_fp32_groups", "read", "what this rank steps", on_instance=True),
    Name(STAGE12, "real_dp_process_group", "read", "the ranks of the other slices", on_instance=True),
    Name(STAGE12, "averaged_gradients", "set", "the slice's gradients", on_instance=True),
    Name(STAGE12, "all_grad_tensors", "set", "gradients summed over micro-batches", on_instance=True),
    Name(STAGE12, "micro_step_id", "set", "whether a window has begun", on_instance=True),
    Name(STAGE12, "cpu_offload", "read", "where gradients lie", on_instance=True),
    Name(OFFLOADED, "_offload_accumulated_param_ids", "set", "parameters with a gradient so far", on_instance=True),
    # -- ZeRO-1 in bfloat16 --------------------------------------------------------------------------------------------
    Name(BF16, "step", "replaced", "take the mean and clip before anything is computed"),
    Name(BF16, "zero_grad", "replaced", "forget what a window that is given up has left"),
    Name(BF16, "optimizer", "read", "the user's", on_instance=True),
    Name(BF16, "bf16_groups", "read", "a group's parameters", on_instance=True),
    Name(BF16, "bf16_groups_flat", "read", "the tensor that they lie in", on_instance=True),
    Name(BF16, "bf16_partitioned_groups", "read", "its slices", on_instance=True),
    Name(BF16, "fp32_groups_flat_partition", "read", "what this rank steps", on_instance=True),
    Name(BF16, "fp32_groups_gradient_flat_partition", "read", "the slice's gradients", on_instance=True),
    Name(BF16, "real_dp_process_group", "read", "the ranks of the other slices", on_instance=True),
    # -- ZeRO-3 --------------------------------------------------------------------------------------------------------
    Name(STAGE3, "step", "replaced", "know when a step is over"),
    Name(STAGE3, "zero_grad", "replaced", "forget what a window that is given up has left"),
    Name(STAGE3, "finalize_gradient_accumulation_boundary", "replaced", "take the mean and clip before anything is"),
    Name(STAGE3, "_get_sub_group_process_group", "called", "the ranks of the other shares"),
    Name(STAGE3, "optimizer", "read", "the user's", on_instance=True),
    Name(STAGE3, "fp16_groups", "read", "a sub-group's parameters", on_instance=True),
    Name(STAGE3, "fp32_partitioned_groups_flat", "read", "what this rank steps", on_instance=True),
    Name(STAGE3, "fp16_partitioned_groups_flat_numel", "read", "how long those are", on_instance=True),
    Name(STAGE3, "sub_group_to_group_id", "read", "which group a sub-group is of", on_instance=True),
    Name(STAGE3, "grad_partitions_flat_buffer", "set", "all gradients of a window", on_instance=True),
    Name(STAGE3, "offload_optimizer", "read", "where gradients lie", on_instance=True),
    Name(PARAMETER, "ds_numel", "read", "elements of the whole parameter", on_instance=True),
    Name(PARAMETER, "ds_shape", "read", "its shape", on_instance=True),
    Name(PARAMETER, "ds_tensor", "read", "this rank's share", on_instance=True),
    Name(PARAMETER, "partition_numel", "called", "how long a share is, with padding", on_instance=True),
)


def check_installed() -> None:
    """Check what classes and modules must have.

    Raises:
        RuntimeError: where this version of DeepSpeed lacks a name; it names the version.
    """
    check_classes(NAMES)


def check(owner: str, instance: Any) -> None:
    """Check what an instance of a class in the list must have.

    Raises:
        RuntimeError: where it lacks a name; it names the version.
    """
    check_instance(NAMES, owner, instance)


def insist(condition: bool, what: str) -> None:
    """Raises RuntimeError with DeepSpeed's version where something that is relied on does not hold."""
    if not condition:
        import deepspeed

        raise RuntimeError(
            f"deepspeed {deepspeed.__version__}: {what}, and lightning_scale relies on it: use a version of deepspeed that its"
            " metadata names, or report this."
        )


def stored_classes() -> list[Any]:
    """What DeepSpeed's folders hold beside tensors and plain values."""
    check_classes(_STORED)
    return [getattr(import_module(entry.owner), entry.name) for entry in _STORED]


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Within, a CPU process group begins without compiling DeepSpeed's shared-memory all-reduce.

    That takes a C++ compiler and a minute or two on every machine, each rank waiting for the others, and serves inference
    alone (``inference_all_reduce``, which otherwise asks torch).
    """
    communication: Any = import_module(COMMUNICATION)  # (deepspeed.comm also has torch itself by that name)
    build = getattr(communication, "build_shm_op", None)
    if build is None:  # another version
        yield
        return
    communication.build_shm_op = lambda: None
    try:
        yield
    finally:
        communication.build_shm_op = build
