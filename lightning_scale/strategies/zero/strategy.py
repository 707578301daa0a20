"""DeepSpeed's ZeRO as a Lightning strategy, with the steps that the window and the optimizers of this package define."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_scale.checkpoints.plain import refusing
from lightning_scale.errors import ConfigurationError
from lightning_scale.lightning_internals import names
from lightning_scale.optim.groups import parameter_names
from lightning_scale.strategies.whole_state import Param, params_of, plain_name
from lightning_scale.strategies.zero.config import Offload, merged, needed, offload_device, read
from lightning_scale.strategies.zero.deepspeed_internals import check_installed, nothing_compiled
from lightning_scale.strategies.zero.flat import Flat
from lightning_scale.strategies.zero.folders import (
    OPTIMIZER,
    check_folder,
    load_plainly,
    refuse_other_optimizer,
    refuse_other_ranks,
)
from lightning_scale.strategies.zero.refusals import (
    refuse_added_group,
    refuse_averaging,
    refuse_config,
    refuse_frozen_groups,
    refuse_optimizer,
    refuse_precision,
    refuse_sync_batchnorm,
    refuse_two_clips,
    refuse_unfrozen,
    refuse_unverified_nvme,
    unused_option,
    unused_rounding,
)
from lightning_scale.strategies.zero.step import Preparation, attach
from lightning_scale.strategies.zero.whole_file import restore_optimizer, restore_weights, whole_state, whole_weights


class ZeROStrategy(DeepSpeedStrategy):
    """ZeRO stages 1, 2 and 3 (Rajbhandari et al. 2019, arXiv 1910.02054), with the optimizer and the parameters in CPU memory
    where that is asked for (ZeRO-Offload).

    A step is the step that DDP takes on the same batch: LARS and LAMB see whole layers, a window is one step of the mean
    over its samples, and gradients are clipped once, after that mean. Works on CUDA devices with NCCL, and on CPUs with
    gloo. Parameters are trained in the Trainer's precision ("bf16-mixed": in bfloat16, stepped in float32). A parameter
    that has no gradient on any rank in a window is left alone in its step, with its state and its step count.

    Args:
        stage: What is partitioned: 1 optimizer state, 2 gradients too, 3 parameters too.
        offload_optimizer: Where optimizer state and float32 weights are kept, and stepped; ``None``: with the parameters.
        offload_parameters: Where parameters are kept between uses (stage 3 only).
        nvme_path: A folder on the disk that "nvme" means.
        allow_unverified_nvme: "nvme" is refused without it.
        config: Further options of DeepSpeed's, a mapping or a JSON file; what the strategy itself relies on wins, with a
            warning.
        save_distributed_checkpoint: ``True``: checkpoints are DeepSpeed's folders, into which every rank writes its share;
            ``False``: one file with whole weights and optimizer state, as DDP writes it. A run resumes from either, from
            such a file of any strategy on any number of ranks.
        exclude_frozen_parameters: Leave frozen parameters out of checkpoints.
        load_full_weights: Stage 3: checkpoints to load are single files of whole weights.
        partition_while_building: Stage 3: each module of ``configure_model`` is taken apart as soon as it is built
            (``deepspeed.zero.Init``), for models that the host cannot hold once for each of its processes. Weights that are
            written to later than in their own module's constructor (by a parent's, say, or transformers' initialization)
            must then be gathered around that, or nothing is written. ``False``: the model is built whole in the host's
            memory, with the weights it has under DDP, and taken apart afterwards.
        process_group_backend: As DDPStrategy's.
        timeout: How long a collective may take.
        logging_level: How much DeepSpeed's own logger says.
        accelerator: Set by the Trainer, as the rest.

    Raises:
        ConfigurationError: where DeepSpeed is not installed, and for what was never tested.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: Offload | None = None,
        offload_parameters: Offload | None = None,
        nvme_path: str | None = None,
        allow_unverified_nvme: bool = False,
        config: dict[str, Any] | str | Path | None = None,
        *,
        save_distributed_checkpoint: bool = True,
        exclude_frozen_parameters: bool = False,
        load_full_weights: bool = False,
        partition_while_building: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
        logging_level: int = logging.WARNING,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        if find_spec("deepspeed") is None:
            raise ConfigurationError(
                "ZeROStrategy needs DeepSpeed, which is not installed: pip install 'lightning_scale[deepspeed]'."
            )
        if not torch.cuda.is_available():
            os.environ.setdefault(
                "DS_ACCELERATOR", "cpu"
            )  # before DeepSpeed is imported; else it guesses, with a warning
        ours, lost = _configuration(
            read(config), stage, offload_optimizer, offload_parameters, nvme_path, allow_unverified_nvme
        )
        for sentence in lost:
            rank_zero_warn(f"in ZeROStrategy's DeepSpeed configuration {sentence}: leave the key out.")
        super().__init__(
            accelerator=accelerator,
            config=ours,
            logging_level=logging_level,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            load_full_weights=load_full_weights,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            exclude_frozen_parameters=exclude_frozen_parameters,
        )
        names.check(names.DEEPSPEED, self)
        check_installed()
        if partition_while_building and stage != 3:
            raise ConfigurationError(f"partition_while_building needs stage=3, and stage is {stage}.")
        self._partition_while_building = partition_while_building
        self._clip = 0.0
        self._preparation: Preparation | None = None
        self._flats: list[Flat] = []
        self._params: list[list[Param]] = []
        self._frozen: dict[str, Tensor] = {}
        self._save_distributed_checkpoint = save_distributed_checkpoint

    # -- devices -------------------------------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        if isinstance(self.accelerator, CPUAccelerator):
            from deepspeed.accelerator import get_accelerator

            if get_accelerator().device_name() != "cpu":
                raise ConfigurationError(
                    "the Trainer runs on the CPU and DeepSpeed would run on a GPU: set the environment variable"
                    " DS_ACCELERATOR=cpu, or leave accelerator out of the Trainer."
                )
            super(DeepSpeedStrategy, self).setup_environment()
        elif isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
        else:
            raise ConfigurationError(
                f"ZeROStrategy runs on CUDA devices and CPUs, and the Trainer's accelerator is"
                f' {type(self.accelerator).__name__}: write accelerator="cuda" or "cpu".'
            )

    def setup_distributed(self) -> None:
        if isinstance(self.accelerator, CPUAccelerator):  # whose devices have no index to compare with the rank
            reset_seed()  # type: ignore[no-untyped-call]
            self.set_world_ranks()
            with nothing_compiled():
                self._init_deepspeed_distributed()
        else:
            super().setup_distributed()

    @property
    def root_device(self) -> torch.device:
        # DeepSpeed wants an index.
        return torch.device("cpu", 0) if isinstance(self.accelerator, CPUAccelerator) else super().root_device

    def setup(self, trainer: L.Trainer) -> None:
        if self._layer_sync is not None and trainer.state.fn == TrainerFn.FITTING:
            assert self.model is not None
            if isinstance(self.accelerator, CPUAccelerator):
                refuse_sync_batchnorm(self.model)
            self.model = self._layer_sync.apply(self.model)  # as DDPStrategy does
        super().setup(trainer)

    # -- windows -------------------------------------------------------------------------------------------------------

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Lightning's loop (and so the window) says when there is a step."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Inside a window DeepSpeed synchronizes what its stage has to, by itself."""
        yield

    def divide_gradients(self, divisor: float | Tensor) -> None:
        """Divide the gradients of the step that follows, before they are clipped."""
        assert self._preparation is not None, "there is no optimizer yet"
        self._preparation.divisor = divisor

    def watch_gradients(self) -> list[str]:
        """From the next step on, note which layers' gradients are not finite; the layers' names, in the module."""
        assert self._preparation is not None, "there is no optimizer yet"
        self._preparation.watching = True
        key_of = {p.name: p.keys[0] for group in self._params for p in group}
        return [key_of[name] for name in self._preparation.layers]

    def nonfinite_layers(self) -> Tensor | None:
        """What was noted of the last step, on this rank: [layers] bool."""
        return self._preparation.nonfinite if self._preparation is not None else None

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        refuse_unfrozen(self._frozen)
        output = super().training_step(*args, **kwargs)
        if output is None:
            raise ConfigurationError(
                "training_step returned None, and under ZeRO every micro-batch of every rank takes part in collectives:"
                " return a loss of 0 (of the module's output, times 0), with num_items 0."
            )
        return output

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if self._save_distributed_checkpoint:
            if self._preparation is not None:
                self._preparation.take_up_written()
            kind = {OPTIMIZER: type(self._users_optimizer()).__name__} if self._preparation is not None else {}
            super().save_checkpoint({**checkpoint, **kind}, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What hooks find in a checkpoint that is being made, and a file then holds; folders hold what DeepSpeed writes."""
        if self._save_distributed_checkpoint:
            return super().lightning_module_state_dict()
        if self._preparation is not None:
            self._preparation.take_up_written()
        weights = whole_weights(self.deepspeed_engine, self._flats, self._params)
        if self.exclude_frozen_parameters:
            module = self._module()
            frozen = {key for key, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
            # What is frozen for a while may have moved before.
            held = {layer.name for flat in self._flats for layer in flat.layout.layers}
            frozen -= {key for group in self._params for p in group if p.name in held for key in p.keys}
            weights = {key: value for key, value in weights.items() if key not in frozen}
        return weights

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Likewise."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        return whole_state(self._users_optimizer(), self._flats, self._params)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder or a file; ``weights_only=False``: with whatever code it asks for.

        Raises:
            UnsafeCheckpointError: where it holds more than tensors, plain values and what DeepSpeed itself puts there;
                nothing was loaded.
        """
        fits = self.lightning_module is not None and self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        path = Path(self.broadcast(checkpoint_path))
        if path.is_file() and not self.load_full_weights:
            return self._load_file(path, weights_only, fits)
        if self.zero_stage_3 and not fits and not self.load_full_weights:
            raise ConfigurationError(
                "DeepSpeed loads a stage 3 checkpoint for training only: make whole weights of it with"
                " deepspeed.utils.zero_to_fp32, load them into the module, and leave ckpt_path out."
            )
        if fits and path.is_dir():
            refuse_other_ranks(path, self.world_size)
            refuse_other_optimizer(path, type(self._users_optimizer()).__name__)
        if weights_only is False:
            return super().load_checkpoint(path, weights_only)
        if not (self.zero_stage_3 and self.load_full_weights):
            check_folder(path)
            load_plainly(self.deepspeed_engine)
        with refusing(path):
            return super().load_checkpoint(path, True)

    def _load_file(self, path: Path, weights_only: bool | None, fits: bool) -> dict[str, Any]:
        """A file as DDP, `FSDP2Strategy` and this strategy write it."""
        with refusing(path):
            checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(
                path, weights_only=weights_only is not False
            )
        module = self._module()
        if "state_dict" not in checkpoint:
            raise ConfigurationError(f"{path} has no state_dict: it is not a checkpoint that Lightning has written.")
        here = {plain_name(key): key for key in module.state_dict()}  # what is compiled has other names
        weights = {here.get(plain_name(key), key): value for key, value in checkpoint["state_dict"].items()}
        restore_weights(self.deepspeed_engine, module, weights, module.strict_loading)
        if fits:
            states = checkpoint.get("optimizer_states", [])
            if len(states) != 1:
                raise ConfigurationError(
                    f"{path} has the state of {len(states)} optimizers, and ZeRO steps one: resume from a checkpoint of a run"
                    " with one, saved with save_weights_only=False."
                )
            restore_optimizer(self._users_optimizer(), self._flats, self._params, weights, states[0])
        return checkpoint

    def _module(self) -> L.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def _users_optimizer(self) -> Any:
        """What DeepSpeed's wrapper steps."""
        return self.deepspeed_engine.optimizer.optimizer

    # -- before DeepSpeed is started -----------------------------------------------------------------------------------

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Around ``configure_model``."""
        self._init_config_if_needed()
        with super().model_sharded_context() if self._partition_while_building else nullcontext():
            yield

    def _format_batch_size_and_grad_accum_config(self) -> None:
        assert isinstance(self.config, dict)
        if self.lightning_module is None:
            return
        trainer = self.lightning_module.trainer
        refuse_precision(self.precision_plugin.precision)
        if self.precision_plugin.precision in ("bf16-mixed", "bf16-true"):
            # The micro-batches of a window are summed in float32, as DDP sums them.
            self.config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        # For DeepSpeed's own logs only; to ask for it Lightning would build the loaders, before a stage has begun.
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)
        # Clipping comes after the window's mean, which DeepSpeed does not wait for.
        given = float(self.config.pop("gradient_clipping", 0.0))
        wanted = float(trainer.gradient_clip_val or 0.0)
        if given and wanted and given != wanted:
            raise ConfigurationError(
                f"the Trainer clips gradients to {wanted} and the DeepSpeed configuration to {given}: keep one of the two."
            )
        self._clip = wanted or given
        self.config["gradient_clipping"] = 0.0

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        if optimizer is None:
            raise ConfigurationError("ZeROStrategy needs an optimizer, and configure_optimizers returned none.")
        refuse_optimizer(optimizer)
        refuse_two_clips(optimizer, self._clip)
        refuse_averaging(self._module().trainer, self.zero_stage_3, self._save_distributed_checkpoint)
        refuse_frozen_groups(optimizer.param_groups)
        assert isinstance(self.config, dict)
        if (warning := unused_option(optimizer, self.config)) is not None:
            rank_zero_warn(warning)
        names = parameter_names(optimizer)  # while it still has the parameters
        self._params = params_of(optimizer, self._module())
        params = [p for group in optimizer.param_groups for p in group["params"]]
        keys = [p.keys[0] for group in self._params for p in group]
        self._frozen = {key: p for key, p in zip(keys, params, strict=True) if not p.requires_grad}
        engine, wrapper = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        self._flats, self._preparation = attach(engine, optimizer, names, params, self._clip)
        if (warning := unused_rounding(optimizer, [flat.tensor for flat in self._flats])) is not None:
            rank_zero_warn(warning)
        setattr(wrapper, "add_param_group", refuse_added_group)  # noqa: B010 (it has none)
        return engine, wrapper


def _configuration(
    theirs: Mapping[str, Any],
    stage: int,
    offload_optimizer: Offload | None,
    offload_parameters: Offload | None,
    nvme_path: str | None,
    allow_unverified_nvme: bool,
) -> tuple[dict[str, Any], list[str]]:
    """DeepSpeed's configuration, and sentences on what the user's lost."""
    if stage not in (1, 2, 3):
        raise ConfigurationError(f"stage is {stage!r}: ZeRO has the stages 1, 2 and 3.")
    for name, value in (("offload_optimizer", offload_optimizer), ("offload_parameters", offload_parameters)):
        if value not in (None, "cpu", "nvme"):
            raise ConfigurationError(f'{name} is {value!r}: write "cpu" or "nvme", or leave it out.')
    refuse_config(theirs)
    offload_optimizer = offload_device(offload_optimizer, theirs, "offload_optimizer")
    offload_parameters = offload_device(offload_parameters, theirs, "offload_param")
    if offload_parameters is not None and stage != 3:
        raise ConfigurationError(f"offload_parameters needs stage=3, and stage is {stage}.")
    wants_nvme = "nvme" in (offload_optimizer, offload_parameters)
    warning = refuse_unverified_nvme(wants_nvme, allow_unverified_nvme)
    if wants_nvme and nvme_path is None and "nvme_path" not in str(theirs):
        raise ConfigurationError("offload to NVMe needs nvme_path, a folder on that disk.")
    if warning is not None:
        rank_zero_warn(warning)
    return merged(needed(stage, offload_optimizer, offload_parameters, nvme_path), theirs)


def register() -> None:
    """Register zero1, zero2, zero3, and each with the optimizer (and zero3's parameters) in CPU memory."""
    for stage in (1, 2, 3):
        _register(f"zero{stage}", f"ZeRO stage {stage}", stage=stage)
        offload = {"offload_optimizer": "cpu", **({"offload_parameters": "cpu"} if stage == 3 else {})}
        _register(f"zero{stage}_offload", f"ZeRO stage {stage} with CPU offload", stage=stage, **offload)


def _register(name: str, description: str, **options: Any) -> None:
    if name not in StrategyRegistry:
        StrategyRegistry.register(name, ZeROStrategy, description=f"lightning_scale: {description}", **options)
