"""How the workers of one training share it: which rows of a batch a worker reads, which workers hold a parameter.

Every worker reads other rows (data parallel over all W workers). Experts are dealt out to ``expert_parallel`` workers and each deal is
sharded over the W / expert_parallel workers that hold the same experts; every other parameter is sharded over all W.
Change here: the process grid. Not here: what is sharded (sharding.py), what travels between experts (experts.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

ALL, SAME_EXPERTS, OTHER_EXPERTS = "workers", "same_experts", "other_experts"
STALLED = timedelta(minutes=10)  # a worker that waits so long for another one gives up


@dataclass(frozen=True)
class Layout:
    """``workers``: mesh of all of them; ``grid``: the same as (same_experts, other_experts), None without expert parallelism."""

    workers: DeviceMesh
    grid: DeviceMesh | None

    @classmethod
    def of_processes(cls, *, expert_parallel: int = 1) -> Layout:
        """The layout of the processes torch.distributed knows. Raises ValueError when they cannot be split so."""
        size = dist.get_world_size()
        if expert_parallel < 1 or size % expert_parallel:
            raise ValueError(f"expert_parallel {expert_parallel} must divide the number of workers, {size}.")
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        shape = (size // expert_parallel, expert_parallel)
        grid = init_device_mesh(device, shape, mesh_dim_names=(SAME_EXPERTS, OTHER_EXPERTS)) if expert_parallel > 1 else None
        return cls(init_device_mesh(device, (size,), mesh_dim_names=(ALL,)), grid)

    @property
    def rank(self) -> int:
        return self.workers.get_local_rank()

    @property
    def size(self) -> int:
        return self.workers.size()

    @property
    def expert_parallel(self) -> int:
        return self.grid[OTHER_EXPERTS].size() if self.grid is not None else 1

    @property
    def device(self) -> torch.device:
        return torch.device(self.workers.device_type, torch.cuda.current_device()) if self.workers.device_type == "cuda" else torch.device("cpu")

    def rows(self, n: int) -> slice:
        """This worker's rows of ``n``; sizes differ by at most one, and may be 0."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)
