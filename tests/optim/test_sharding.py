"""State of shards as DTensors, on meshes of ranks that are not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from lightning_scale.optim.dtensor import like
from lightning_scale.optim.state.sharded_moments import Rows, rows_of


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two GPUs', of which this is the second rank's process."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield DeviceMesh("cuda", [0, 1])
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a mesh of GPUs would bind this process to one")
def test_state_of_an_offloaded_share_stays_where_it_is(mesh: DeviceMesh) -> None:
    spec = DTensorSpec(mesh, (Shard(0),), TensorMeta(torch.Size([13, 6]), (6, 1), torch.float32))
    p = DTensor(torch.ones(6, 6), spec, requires_grad=False)
    state = torch.zeros(6, 6)
    kept = like(p, state)
    assert isinstance(kept, DTensor) and kept.shape == (13, 6) and kept.placements == p.placements
    assert kept.to_local().data_ptr() == state.data_ptr() and kept.device.type == "cpu"
    rows = like(p, torch.zeros(6, 2))  # two numbers for each row
    assert rows.shape == (13, 2) and rows.stride() == (2, 1)
    assert rows_of(p) == Rows(7, 6, 6)
