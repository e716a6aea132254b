"""The decoder on several workers: parameters sharded by FSDP2, experts dealt out, losses over the whole batch.

Change here: what is sharded where, how losses of several workers add up. Not here: the process grid (layout.py), the losses
themselves (models/transformer.py, models/moe.py), the optimiser (trainer.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from models.config import ModelConfig
from models.moe import RouterStats
from models.parallel.experts import expert_parallel
from models.parallel.layout import OTHER_EXPERTS, SAME_EXPERTS, Layout
from models.transformer import LossOutput, Transformer, is_target

PADDING = -1  # document id of padding


class _Sum(torch.autograd.Function):
    """Sum over the workers. Each passes the gradient on to its own part: FSDP adds up the parameters' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


class ParallelTransformer(Transformer):
    """The decoder whose ``forward_loss`` takes the whole batch on every worker, computes this worker's rows and returns the losses of the
    whole batch. Every call is collective: all workers make the same calls. Not sharded before ``shard``."""

    def __init__(self, config: ModelConfig, experts_backend: str, layout: Layout) -> None:
        super().__init__(config, experts_backend)
        self.layout = layout

    def forward_loss(
        self, tokens_BT: Tensor, document_ids_BT: Tensor, loss_mask_BT: Tensor | None = None, *, n_targets: int | None = None, share: float = 1.0
    ) -> LossOutput:
        """As Transformer's, for the whole batch. Both sums and normalisers run over all workers: the next-token loss over all predicted
        tokens, the balancing loss over the global counts and scores, not the mean of the workers' losses (Qiu et al. 2025, arXiv 2501.11873).
        """
        rows = self.layout.rows(len(tokens_BT))
        mine = [t[rows] if t is not None else None for t in (tokens_BT, document_ids_BT, loss_mask_BT)]
        if rows.start == rows.stop:  # a worker without rows still takes part in every exchange: one row that counts nowhere
            mine = [tokens_BT[:1], torch.full_like(document_ids_BT[:1], PADDING), None]
        counts_BT = is_target(document_ids_BT) if loss_mask_BT is None else is_target(document_ids_BT) & loss_mask_BT[:, 1:].bool()
        predicted = int(counts_BT.sum())
        here = int((mine[1] >= 0).sum()) / max(1, int((document_ids_BT >= 0).sum()))  # this worker's share of the tokens
        own = super().forward_loss(*mine, n_targets=max(1, predicted) if n_targets is None else n_targets, share=share * here)
        # The balancing loss is one over the square of the tokens it sees: of global counts, the worker's share counts twice.
        parts = torch.stack((own.next_token_loss, own.load_balancing_loss * here, own.router_z, own.router_confidence))
        # Clones: FSDP hangs its hooks on what comes out here, which a view would lose.
        next_token_loss, balance, z, confidence = (part.clone() for part in _Sum.apply(parts, self.layout.workers.get_group()))
        z_weight = self.config.router_z_loss_weight
        loss = next_token_loss + balance
        return LossOutput(
            loss + z_weight * z if z_weight else loss, next_token_loss, balance, predicted, own.tokens_per_expert_LE, confidence.detach(), z,
        )  # fmt: skip

    def _run(self, *args: Any) -> tuple[Tensor, list[RouterStats]]:
        """Router counts become those of all workers, in one exchange for all layers; scores and logits stay this worker's."""
        hidden_BTD, router = super()._run(*args)
        counts_LE = torch.stack([stats.tokens_per_expert_E for stats in router])
        dist.all_reduce(counts_LE, group=self.layout.workers.get_group())
        return hidden_BTD, [replace(stats, tokens_per_expert_E=counts_E) for stats, counts_E in zip(router, counts_LE, strict=True)]


def shard(model: ParallelTransformer) -> ParallelTransformer:
    """Leave each worker its part of every parameter, and return ``model``; names and global shapes stay. All workers must hold the same weights.

    Raises ValueError when the experts cannot be dealt out evenly.
    """
    layout, experts, same_experts = model.layout, set(), None
    if layout.grid is not None:
        if model.config.n_experts % layout.expert_parallel:
            raise ValueError(f"{model.config.n_experts} experts cannot be dealt out to expert_parallel {layout.expert_parallel} workers evenly.")
        experts = {parameter for block in model.transformer.blocks for parameter in _deal_out(block, layout)}
        same_experts = FSDPMeshInfo(layout.grid[SAME_EXPERTS], shard_mesh_dim=0)

    def place(parameter: nn.Parameter) -> ShardPlacementResult | None:
        return ShardPlacementResult(Shard(0), same_experts) if parameter in experts else None

    for block in model.transformer.blocks:
        fully_shard(block, mesh=layout.workers, shard_placement_fn=place)
    fully_shard(model, mesh=layout.workers)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # losses are sums over the whole batch already: gradients are added, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for method in ("forward_loss", "hidden"):
        register_fsdp_forward_method(model, method)
    return model


def _deal_out(block: nn.Module, layout: Layout) -> list[nn.Parameter]:
    """Keep this worker's experts of a block only."""
    mlp, dealt = block.ffn.experts.mlp, []
    for name, whole in list(mlp.named_parameters(recurse=False)):
        part = nn.Parameter(distribute_tensor(whole.detach(), layout.grid[OTHER_EXPERTS], [Shard(0)], src_data_rank=None))
        mlp.register_parameter(name, part)
        dealt.append(part)
    block.ffn.experts_backend = expert_parallel(block.ffn.experts_backend)
    return dealt


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded, on every worker."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
