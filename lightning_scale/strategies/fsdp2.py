"""FSDP2 for modules that do not shard themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lightning_scale.saves.plain import refusing

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
        offload_parameters: ``"cpu"`` keeps parameters, gradients and optimizer state in the host's memory.
        save_distributed_checkpoint: ``True``: checkpoints are folders into which every rank writes its share; ``False``: one
            file with whole tensors.
        process_group_backend: As at `ModelParallelStrategy`.

    Raises:
        ValueError: where ``replicas`` does not divide the number of ranks, or no module is of a class in ``layers``.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        replicas: int = 1,
        offload_parameters: Literal["cpu"] | None = None,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )
        if replicas < 1:
            raise ValueError(
                f"replicas is {replicas}: give how many copies of the parameters all ranks hold, 1 or more."
            )
        if offload_parameters not in (None, "cpu"):
            raise ValueError(f'offload_parameters is {offload_parameters!r}: write "cpu", or leave it out.')
        self._layers = tuple(layers) if layers is not None else None
        self._replicas = replicas
        self._offload_parameters = offload_parameters

    def setup_environment(self) -> None:
        """Set up the process group and the mesh of all ranks."""
        ranks = self.num_nodes * self.num_processes
        if ranks % self._replicas:
            raise ValueError(f"replicas is {self._replicas}, which does not divide the {ranks} ranks.")
        self._data_parallel_size = ranks
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Shard the module, unless it has done so itself, and set up optimizers."""
        module = self.lightning_module
        assert module is not None
        from torch.distributed.fsdp import FSDPModule

        if any(isinstance(m, FSDPModule) for m in module.modules()):
            super().setup(trainer)
            return
        self._shard(module)
        with _configures_itself(module):
            super().setup(trainer)

    def _shard(self, module: L.LightningModule) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

        offload = (
            CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")
            if self._offload_parameters
            else OffloadPolicy()
        )
        if not self._offload_parameters:
            module.to(self.root_device)
        for layer in layers_of(module, self._layers):
            fully_shard(layer, mesh=self._mesh(), offload_policy=offload)
        fully_shard(module, mesh=self._mesh(), offload_policy=offload)
        # Lightning calls these, not forward: parameters are gathered around them.
        for step in _STEPS:
            register_fsdp_forward_method(module, step)

    def _mesh(self) -> Any:
        if self._replicas == 1:
            return self.device_mesh["data_parallel"]
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self._replicas, self.world_size // self._replicas)
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder or a file; ``weights_only=False``: with whatever code they ask for.

        Raises:
            UnsafeCheckpointError: where it holds more than tensors and plain values; nothing was loaded.
        """
        if weights_only is False:
            return super().load_checkpoint(checkpoint_path, weights_only)
        from lightning_scale.strategies.plain_folder import is_folder, load_folder

        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None and self.lightning_module is not None
        if is_folder(path):
            return load_folder(path, self.model, self.optimizers, self.lightning_module.strict_loading)
        with refusing(path):
            return super().load_checkpoint(path, True)

    def model_to_device(self) -> None:
        """Move the module to this rank's device, unless its parameters stay on the host."""
        if not self._offload_parameters:
            super().model_to_device()


def layers_of(module: nn.Module, classes: Sequence[str] | None) -> list[nn.Module]:
    """The modules that are gathered one by one, inner ones first.

    Args:
        module: Where to look.
        classes: The names of their classes; ``None``: the modules in every ``nn.ModuleList``.

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
    return [
        m for m in modules if id(m) in found and any(True for _ in m.parameters()) and not isinstance(m, nn.ModuleList)
    ]


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
