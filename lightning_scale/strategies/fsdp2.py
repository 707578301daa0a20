"""FSDP2 for modules that do not shard themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from lightning_scale.checkpoints.plain import load_plain, refusing
from lightning_scale.errors import ConfigurationError
from lightning_scale.lightning_internals import evaluate_without_inference_mode, materialize, names
from lightning_scale.lightning_internals.checks import Name, check_classes
from lightning_scale.strategies.named_state import gathered, load_named, named
from lightning_scale.strategies.refusals import refuse_layer_sync_on_cpu, refuse_weight_averaging
from lightning_scale.strategies.whole_state import params_of, plain_name, refuse_other_weights, with_keys

TORCHS_NAMES = (
    Name("torch.distributed.fsdp:FSDPModule", "_get_fsdp_state", "called", "what gradients are reduced in"),
    Name(
        "torch.distributed.fsdp._fully_shard._fsdp_state:FSDPState",
        "_lazy_init",
        "called",
        "what gradients are reduced in",
    ),
)
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` with parameters, gradients and optimizer state sharded over all ranks
    (``torch.distributed.fsdp.fully_shard``), without a ``configure_model`` that does it.

    The layers of every ``nn.ModuleList`` are gathered one after another as the forward pass reaches them, the rest of the
    module at once. A module that shards itself in ``configure_model`` is left as it is.

    Args:
        layers: Names of the classes whose modules are gathered one by one, instead of those in ``nn.ModuleList``.
        replicas: How many copies of the parameters all ranks hold together (HSDP): each copy is sharded over
            ``ranks / replicas``.
        offload_parameters: ``"cpu"`` keeps parameters, gradients and optimizer state in the host's memory. On GPUs the
            process group is then "cpu:gloo,cuda:nccl", unless ``process_group_backend`` says otherwise: the Trainer's clip
            adds up norms there.
        param_dtype: ``"bfloat16"``: parameters are gathered and layers computed in bfloat16, while the optimizer steps on
            what it was given (float32 with ``precision: 32-true``). With ``precision: bf16-mixed`` losses and norms stay
            in float32; alone everything between the parameters is bfloat16, the module's floating-point inputs too.
        reduce_dtype: ``"float32"`` or ``"bfloat16"``: what gradients are averaged over ranks in; ``None``: what they are
            computed in, which is ``param_dtype`` where that is given and the parameters' own dtype otherwise.
        save_distributed_checkpoint: ``True``: checkpoints are folders into which every rank writes its share; ``False``: one
            file with whole tensors.
        process_group_backend: As at `ModelParallelStrategy`.
        timeout: After how long a collective that not all ranks have come to is an error.

    Raises:
        ConfigurationError: with torch 2.6; for ``sync_batchnorm=True`` on CPUs; beside Lightning's `WeightAveraging`.
        ValueError: where ``replicas`` does not divide the number of ranks, no module is of a class in ``layers``, or float16
            is asked for, by these options or by the Trainer's ``precision``: nothing would scale the loss.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        replicas: int = 1,
        offload_parameters: Literal["cpu"] | None = None,
        param_dtype: Literal["bfloat16"] | None = None,
        reduce_dtype: Literal["float32", "bfloat16"] | None = None,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        _check_torch()
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        names.check(names.MODEL_PARALLEL, self)
        if replicas < 1:
            raise ValueError(
                f"replicas is {replicas}: give how many copies of the parameters all ranks hold, 1 or more."
            )
        if offload_parameters not in (None, "cpu"):
            raise ValueError(f'offload_parameters is {offload_parameters!r}: write "cpu", or leave it out.')
        _check_dtype("param_dtype", param_dtype, ("bfloat16",))
        _check_dtype("reduce_dtype", reduce_dtype, ("float32", "bfloat16"))
        self._layers = tuple(layers) if layers is not None else None
        self._replicas = replicas
        self._offload_parameters = offload_parameters
        self._param_dtype = param_dtype
        self._reduce_dtype = reduce_dtype

    def setup_environment(self) -> None:
        """Set up the process group and the mesh of all ranks."""
        ranks = self.num_nodes * self.num_processes
        if ranks % self._replicas:
            raise ValueError(f"replicas is {self._replicas}, which does not divide the {ranks} ranks.")
        self._data_parallel_size = ranks
        super().setup_environment()

    def _get_process_group_backend(self) -> str:
        if self._process_group_backend is None and self._offload_parameters and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"
        return super()._get_process_group_backend()

    def setup(self, trainer: L.Trainer) -> None:
        """Shard the module, unless it has done so itself, and set up optimizers."""
        module: Any = self.lightning_module
        assert module is not None
        from torch.distributed.fsdp import FSDPModule

        if str(trainer.precision).startswith("16"):
            raise ValueError(
                f"precision={trainer.precision!r} computes in float16, and FSDP2Strategy has nothing that scales the loss: write"
                ' "bf16-mixed", "bf16-true" or "32-true".'
            )
        refuse_weight_averaging(trainer, "FSDP2Strategy")
        # What training gathers parameters into must not be made in inference mode: it is written to, later and in place.
        evaluate_without_inference_mode(trainer)
        if any(isinstance(m, FSDPModule) for m in module.modules()):
            self._warn_of_unused_options(module)
        else:
            module = self.precision_plugin.convert_module(module)
            if self._layer_sync is not None:
                refuse_layer_sync_on_cpu(self.root_device)
                module = self._layer_sync.apply(module)
            self._shard(module)
            module._fsdp2_options = self._options()
        with _configures_itself(module):
            super().setup(trainer)

    def _options(self) -> dict[str, Any]:
        """What the module is sharded by, where it is not as it is by default."""
        options = {
            "layers": self._layers,
            "replicas": None if self._replicas == 1 else self._replicas,
            "offload_parameters": self._offload_parameters,
            "param_dtype": self._param_dtype,
            "reduce_dtype": self._reduce_dtype,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _warn_of_unused_options(self, module: nn.Module) -> None:
        earlier = getattr(module, "_fsdp2_options", None)  # of the strategy that has sharded it, in another fit or test
        unused = [name for name, value in self._options().items() if earlier is None or earlier.get(name) != value]
        if unused:
            why = (
                "the module shards itself in configure_model, and says there what fully_shard is to do"
                if earlier is None
                else "the module has been sharded before, with other options"
            )
            rank_zero_warn(f"FSDP2Strategy's {', '.join(unused)} will not be used: {why}.")

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within, gradients are summed over the ranks of each copy alone; over the copies in a step's last micro-batch."""
        module: Any = self.lightning_module
        if self._replicas == 1 or module is None or not hasattr(module, "set_requires_all_reduce"):
            yield
            return
        module.set_requires_all_reduce(False)
        try:
            yield
        finally:
            module.set_requires_all_reduce(True)

    def _shard(self, module: nn.Module) -> None:
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        offload = (
            CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")
            if self._offload_parameters
            else OffloadPolicy()
        )
        # fully_shard moves each layer to the device by itself, and leaves this rank's share there: no device holds the whole.
        options = {
            "mesh": self._mesh(),
            "offload_policy": offload,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=_DTYPES[self._param_dtype] if self._param_dtype else None,
                reduce_dtype=_DTYPES[self._reduce_dtype] if self._reduce_dtype else None,
            ),
        }
        for layer in layers_of(module, self._layers):
            fully_shard(layer, **options)
        fully_shard(module, **options)
        # Lightning calls these, not forward: parameters are gathered around them.
        for step in _STEPS:
            register_fsdp_forward_method(module, step)
        self._materialize(module)
        if self._param_dtype or self._reduce_dtype:
            _expect_unfreezing(module)

    def _materialize(self, module: nn.Module) -> None:
        """Give memory and first values to this rank's share of what was made on the meta device (``empty_init=True``)."""
        if not any(t.is_meta for t in (*module.parameters(), *module.buffers())):
            return
        device = torch.device("cpu") if self._offload_parameters else self.root_device
        if device.type == "cuda":  # there DTensors draw what the whole tensor would have drawn
            materialize(module, device)
            return
        with torch.random.fork_rng(devices=[]):
            # On CPUs each rank draws its share alone: all from one seed would be copies of each other.
            torch.manual_seed(torch.initial_seed() + self.global_rank % (self.world_size // self._replicas))
            materialize(module, device)

    def _mesh(self) -> Any:
        if self._replicas == 1:
            return self.device_mesh["data_parallel"]
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self._replicas, self.world_size // self._replicas)
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint of any number of ranks: a folder, or a file of any strategy.

        Args:
            checkpoint_path: A folder, or a file of whole tensors.
            weights_only: ``False``: run whatever code it asks for.

        Raises:
            UnsafeCheckpointError: where it holds more than tensors and plain values; nothing was loaded.
            ValueError: where another kind of optimizer has saved it.
            ConfigurationError: where it is a file of another model, or of other parameter groups.
        """
        from lightning_scale.strategies.plain_folder import is_folder, load_folder

        path = Path(self.broadcast(checkpoint_path))
        if path.is_file():
            return self._load_file(path, weights_only)
        assert self.model is not None and self.lightning_module is not None
        if is_folder(path):
            strict = self.lightning_module.strict_loading
            return load_folder(path, self.model, self.optimizers, strict, trusted=weights_only is False)
        with refusing(path):
            return super().load_checkpoint(path, weights_only is not False)

    def _load_file(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        """Load a file of whole tensors; of each state every rank takes its share."""
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
            set_model_state_dict,
        )

        module = self.lightning_module
        assert module is not None
        load = partial(torch.load, map_location="cpu", weights_only=False) if weights_only is False else load_plain
        checkpoint: dict[str, Any] = load(path, mmap=True)
        weights = {plain_name(name): value for name, value in checkpoint["state_dict"].items()}
        if module.strict_loading:
            refuse_other_weights(weights, get_model_state_dict(module))
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=module.strict_loading)
        set_model_state_dict(module, weights if self.global_rank == 0 else {}, options=whole)
        # A file of weights alone has none, and a test has no optimizers.
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            load_named(optimizer, module, with_keys(state, params_of(optimizer, module)))
        return checkpoint

    def on_exception(self, exception: BaseException) -> None:
        """Add to torch's words what has been done that it speaks of."""
        if isinstance(exception, RuntimeError) and "mixed torch.Tensor and DTensor" in str(exception):
            exception.args = (
                f"{exception} (FSDP2Strategy gathers parameters inside of training_step, validation_step, test_step and"
                " predict_step alone, and a layer was called elsewhere, in a hook perhaps: call it inside of one of these.)",
            )
        super().on_exception(exception)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return what a checkpoint holds of an optimizer: all state that there is, also of what is frozen now.

        For a folder it is by the names of the parameters, and of each this rank's share; for a file it is what an unsharded run
        saves, on rank 0.
        """
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        assert self.model is not None
        if self._save_distributed_checkpoint:
            return named(optimizer, self.model)
        return gathered(optimizer.state_dict(), self.global_rank == 0)

    def model_to_device(self) -> None:
        """Move the module to this rank's device, unless its parameters stay on the host."""
        if not self._offload_parameters:
            super().model_to_device()


def _expect_unfreezing(module: Any) -> None:
    """Let layers that are frozen now be trained later.

    What a layer's gradients are reduced in follows from those of its parameters that train when this is called, which is
    otherwise before the first forward pass.
    """
    check_classes(TORCHS_NAMES)
    frozen = [p for p in module.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    module._get_fsdp_state()._lazy_init()
    for p in frozen:
        p.requires_grad_(False)


def _check_torch() -> None:
    # What fully_shard calls on CPUs and torch 2.6 lacks: https://github.com/pytorch/pytorch/pull/145935. With it, backward
    # passes there still raise, and torch.distributed.checkpoint.load has no `no_dist`, by which folders are looked through.
    if not hasattr(torch.cpu.Stream, "record_event"):
        raise ConfigurationError(
            f"FSDP2Strategy needs torch 2.7 or later, and this is torch {torch.__version__}: upgrade it, or write another"
            " strategy, ddp or one of ZeROStrategy's stages."
        )


def _check_dtype(option: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        choices = " or ".join(f'"{name}"' for name in allowed)
        why = ", and nothing here scales the loss, as float16 needs it" if value == "float16" else ""
        raise ValueError(f"{option} is {value!r}{why}: write {choices}, or leave it out.")


def layers_of(module: nn.Module, classes: Sequence[str] | None) -> list[nn.Module]:
    """The modules that are gathered one by one, inner ones first.

    Args:
        module: The module that holds them.
        classes: The names of their classes; ``None``: the modules in every ``nn.ModuleList``. A layer that shares a
            parameter with what lies outside of it is none of them: it is gathered with the rest.

    Raises:
        ValueError: for a name that no module's class has.
    """
    modules = list(module.modules())[:0:-1]
    if classes is None:
        found = {id(layer) for m in modules if isinstance(m, nn.ModuleList) for layer in m}
    else:
        names = {type(m).__name__ for m in modules}
        if unknown := sorted(set(classes) - names):
            raise ValueError(f"layers names {', '.join(unknown)}, and the module has only {', '.join(sorted(names))}.")
        found = {id(m) for m in modules if type(m).__name__ in classes}
    places: dict[int, list[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        places.setdefault(id(p), []).append(name)
    inside = {id(m): f"{name}." for name, m in module.named_modules()}

    def by_itself(m: nn.Module) -> bool:
        shared = (place for p in m.parameters() for place in places[id(p)])
        return any(True for _ in m.parameters()) and all(place.startswith(inside[id(m)]) for place in shared)

    return [m for m in modules if id(m) in found and not isinstance(m, nn.ModuleList) and by_itself(m)]


@contextmanager
def _configures_itself(module: L.LightningModule) -> Iterator[None]:
    """Within, the module seems to have a ``configure_model`` of its own, which Lightning insists on."""
    if type(module).configure_model is not L.LightningModule.configure_model:
        yield
        return
    module.configure_model = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.configure_model


__all__ = ["FSDP2Strategy", "layers_of"]
