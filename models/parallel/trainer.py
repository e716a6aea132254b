"""The training loop on several workers: the same steps as models/train_loop.py, on sharded parameters.

Change here: what a step, a checkpoint needs beyond one process. Not here: optimiser and schedule (models/train_loop.py), sharding
(sharding.py), files of a checkpoint (sharded.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from models import checkpoint
from models.config import ModelConfig
from models.data_order import DataOrder
from models.parallel import sharded
from models.parallel.layout import Layout
from models.parallel.sharding import ParallelTransformer, local, shard, whole
from models.train_loop import MOMENTS, CheckpointInfo, LoopConfig, PackedSequences, Trainer


def new_parallel_model(config: ModelConfig, layout: Layout, *, seed: int, experts_backend: str = "grouped_mm") -> ParallelTransformer:
    """models.train_loop.new_model with the same weights, sharded. Each worker draws all of them once, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ParallelTransformer(config, experts_backend, layout)
    return shard(model.to(layout.device))


def _mesh(tensor: Tensor) -> Hashable:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _by_mesh(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Lists of tensors on one mesh each: torch's list operations take no others."""
    found: dict[Hashable, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        found[_mesh(tensor)].append(tensor)
    return list(found.values())


class ParallelTrainer(Trainer):
    """Trainer of a sharded model: ``workers`` processes that make the same calls follow the curve of one, up to the order of sums. ``data`` and
    ``order`` are the same on all of them; metrics are those of the whole batch, on every worker."""

    def __init__(self, model: ParallelTransformer, loop: LoopConfig, data: PackedSequences, order: DataOrder | None = None) -> None:
        super().__init__(model, loop, data, order)
        self.layout = model.layout
        self.optimizer.param_groups[:] = [{**group, "params": params} for group in self.optimizer.param_groups for params in _by_mesh(group["params"])]

    def _clip(self) -> Tensor:
        """Scale all gradients by their norm over all workers; returns that norm, to the last bit the same on every worker (they judge by it)."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        squares = torch.nn.utils.get_total_norm([local(p.grad) for p in parameters]).square()  # every part lies on one worker
        dist.all_reduce(squares, group=self.layout.workers.get_group())
        total = squares.sqrt()
        for params in _by_mesh(parameters):
            torch.nn.utils.clip_grads_with_norm_(params, self.loop.grad_clip, total)
        return total

    def save(self, directory: Path) -> CheckpointInfo:
        """Write a checkpoint whole, as one worker would, and return when it is there: the form that models are taken from. The first worker
        gathers every tensor in its CPU memory; sharded.BackgroundWriter writes ``contents`` without gathering. Raises OSError on every worker."""
        first, contents = self.layout.rank == 0, self.contents()
        gathered: dict[str, dict[str, Tensor]] = {}
        for stem, named in contents["tensors"].items():
            gathered[stem] = {}
            for name, tensor in named.items():
                full = whole(tensor.detach())
                if first:
                    gathered[stem][name] = full.cpu()
        path, digest = sharded.by_first(lambda: checkpoint.write(Path(directory), **{**contents, "tensors": gathered}))
        return CheckpointInfo(path=path, sha256=digest, step=self.step_number, tokens=self.tokens)

    def load(self, directory: Path) -> None:
        """As Trainer's, from a checkpoint of however many workers that the first one has verified (sharded.latest_valid)."""
        directory = Path(directory)
        state = checkpoint.read_state(directory)
        self._require_same(state, directory)
        there = sharded.names(directory)
        tensors: dict[str, Tensor] = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            made = {"step": torch.zeros((), device=self._device), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            moments = {key: made[key].detach() for key in MOMENTS if f"{name}.{key}" in there}
            if moments:
                self.optimizer.state[parameter] = moments
                tensors |= {f"{name}.{key}": value for key, value in moments.items()}
        sharded.load(directory, tensors)
        self._restore(state)
