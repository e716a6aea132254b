"""The decoder: DBRX's architecture and parameter names (databricks/dbrx modeling_dbrx.py), in plain torch.

LayerNorm without bias, no biases anywhere, fused Wqkv clamped to clip_qkv, rotary positions (rotate-half), grouped-query
attention, dropless SiLU GLU experts, untied lm_head. Attention never crosses documents packed into one sequence.
Change here: the architecture, what counts in the loss. Not here: routing (moe.py), kernels (experts.py), the optimiser (train_loop.py).

Shape suffixes: B sequences, T positions, S cached and new positions, D model width, H heads, V vocabulary, L layers, E experts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import ModelConfig
from models.cross_entropy import summed_cross_entropy
from models.kv_cache import BLOCK, KVCache, rounded_up
from models.moe import MoE, RouterStats, load_balancing_loss, mean_confidence, router_z
from models.packed_attention import LEAST_POSITIONS, QueryBlock, attend_packed, query_blocks
from models.varlen_attention import attend_documents, document_ends, fits


@dataclass(frozen=True)
class ModelOutput:
    logits_BTV: Tensor
    router: list[RouterStats]


@dataclass(frozen=True)
class LossOutput:
    """``loss`` = ``next_token_loss`` (mean nats per predicted token) + ``load_balancing_loss`` + the config's router_z_loss_weight times
    ``router_z``; ``n_tokens`` predicted tokens;
    ``tokens_per_expert_LE`` int64; ``router_confidence``: mean probability of a token's best expert; ``router_z``: mean squared logsumexp
    of the router logits (both over tokens and layers). Of a micro-batch these are its parts, which add up to the batch's."""

    loss: Tensor
    next_token_loss: Tensor
    load_balancing_loss: Tensor
    n_tokens: int
    tokens_per_expert_LE: Tensor
    router_confidence: Tensor
    router_z: Tensor


@dataclass(frozen=True)
class _Context:
    """What all layers share for one batch, built once: rotary tables, attention mask, tokens that count in router statistics."""

    cos: Tensor  # (B or 1, T, 1, head_dim)
    sin: Tensor
    mask: Tensor | None  # (B or 1, 1, T, S) added to the scores; None: plain causal
    ends: Tensor | None  # where documents begin and end in the flattened batch, instead of a mask (varlen_attention)
    counted_N: Tensor | None
    cache: KVCache | None
    blocks: tuple[QueryBlock, ...] = ()  # in place of a mask


def document_positions(document_ids_BT: Tensor) -> Tensor:
    """Position of every token within its document: 0 where the id differs from the id before it."""
    index_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    starts = torch.ones_like(document_ids_BT, dtype=torch.bool)
    starts[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return index_T - torch.where(starts, index_T, 0).cummax(1).values


def is_target(document_ids_BT: Tensor) -> Tensor:
    """Which tokens are predicted, bool (B, T-1), of the tokens from the second on: those whose predecessor is of the same document."""
    return (document_ids_BT[:, 1:] == document_ids_BT[:, :-1]) & (document_ids_BT[:, 1:] >= 0)


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (..., head_dim): angles in float32, as Hugging Face computes them."""
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim))
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, rotate-half form: pairs (i, i + head_dim/2)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention (B, H, T, head_dim) of H query heads on fewer key heads; ``mask`` is added, None is causal."""
    rows, n_heads, new, head_dim = q.shape
    n_kv, seen = k.shape[1:3]
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and mask is not None and seen <= 1024:
        # torch's CPU kernel takes 2.4 times as long here, forward and backward (B 16, H 4, T 256, torch 2.15).
        grouped = (q * head_dim**-0.5).reshape(rows, n_kv, -1, head_dim)
        scores = (grouped @ k.transpose(-1, -2)).view(rows, n_kv, -1, new, seen) + mask[:, :, None]
        return (scores.softmax(-1).view(rows, n_kv, -1, seen) @ v).view(q.shape)
    k, v = (t.repeat_interleave(n_heads // n_kv, dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class Linear(nn.Linear):
    """Without bias, left for ``Transformer`` to initialise (torch's own draw would be thrown away, and is slow on meta)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """Left for ``Transformer`` to initialise."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv = config.n_kv_heads * config.head_dim
        self.Wqkv = Linear(config.d_model, config.d_model + 2 * kv)
        self.out_proj = Linear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, context: _Context, layer: int) -> Tensor:
        n_heads, n_kv = self.config.n_heads, self.config.n_kv_heads
        qkv = self.Wqkv(x_BTD).clamp(-self.config.clip_qkv, self.config.clip_qkv)
        qkv = qkv.unflatten(-1, (n_heads + 2 * n_kv, self.config.head_dim))  # (B, T, heads, head_dim)
        qk = rotate(qkv[:, :, : n_heads + n_kv], context.cos.to(qkv.dtype), context.sin.to(qkv.dtype))
        parts = qk[:, :, :n_heads], qk[:, :, n_heads:], qkv[:, :, n_heads + n_kv :]
        if context.ends is not None:
            return self.out_proj(attend_documents(*parts, context.ends).flatten(2))
        q, k, v = (part.transpose(1, 2) for part in parts)
        if context.cache is not None:
            return self.out_proj(context.cache.attend(layer, q, k, v).transpose(1, 2).flatten(2))
        if context.blocks:
            return self.out_proj(attend_packed(q, k, v, context.blocks).transpose(1, 2).flatten(2))
        mask = context.mask.to(q.dtype) if context.mask is not None else None
        return self.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class NormAttentionNorm(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, bias=False)
        self.attn = Attention(config)
        self.norm_2 = nn.LayerNorm(config.d_model, bias=False)


class Block(nn.Module):
    """In training alone: ``recompute`` keeps only the input and computes the rest again in backward (statistics are returned, not stored, so
    that counts nothing twice); ``compiled`` is ``_body`` through torch.compile."""

    def __init__(self, config: ModelConfig, experts_backend: str) -> None:
        super().__init__()
        self.norm_attn_norm = NormAttentionNorm(config)
        self.ffn = MoE(config, experts_backend)
        self.recompute = False
        self.compiled: Callable[..., tuple[Tensor, RouterStats]] | None = None

    def forward(self, x_BTD: Tensor, context: _Context, layer: int) -> tuple[Tensor, RouterStats]:
        if not (self.training and torch.is_grad_enabled()):
            return self._body(x_BTD, context, layer)
        body = self.compiled or self._body
        if self.recompute:
            return checkpoint(body, x_BTD, context, layer, use_reentrant=False, preserve_rng_state=False)  # no dropout draws anything
        return body(x_BTD, context, layer)

    def _body(self, x_BTD: Tensor, context: _Context, layer: int) -> tuple[Tensor, RouterStats]:
        part = self.norm_attn_norm
        x_BTD = x_BTD + part.attn(part.norm_1(x_BTD), context, layer)
        out_BTD, stats = self.ffn(part.norm_2(x_BTD), context.counted_N)
        return x_BTD + out_BTD, stats


class Decoder(nn.Module):
    """Embedding, blocks and final norm: everything of DBRX's state dict under ``transformer.``."""

    def __init__(self, config: ModelConfig, experts_backend: str) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, experts_backend) for _ in range(config.n_layers))
        self.norm_f = nn.LayerNorm(config.d_model, bias=False)


def initial_std(config: ModelConfig, name: str) -> float:
    """Standard deviation the parameter ``name`` is drawn with.

    ``by_width`` keeps activations of order 1 at any width: embeddings 1, matrices 1/sqrt(fan-in) (LeCun et al. 1998), those that write
    into the residual stream another 1/sqrt(2 L) smaller (GPT-2, Radford et al. 2019, section 2.3), output weights ``init_std``.
    On 300,000 tokens at width 128 it reached 5.09 nats where N(0, .02) everywhere reached 5.66 (infra/decisions/0006). With a
    ``base_width`` router and output weights are those of that width, smaller by the rule of models/parameter_groups.py.
    """
    part = name.rpartition(".weight")[0] or name
    narrower = config.base_width / config.d_model if config.base_width else 1.0
    if config.init == "fixed" or part == "lm_head":
        return config.init_std * narrower
    if part.endswith("router.layer"):
        return config.d_model**-0.5 * narrower**0.5
    if part.endswith("wte"):
        return 1.0
    fan_in = config.ffn_hidden if part.endswith("w2") else config.d_model
    writes_residual = part.endswith(("w2", "out_proj"))
    return fan_in**-0.5 * ((2 * config.n_layers) ** -0.5 if writes_residual else 1.0)


def require_compiler(device: str) -> None:
    """Raise ValueError when torch.compile cannot work on ``device`` (it would fail at the first step, in its own words)."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ValueError("compile=True on a GPU needs Triton, which is not installed: install torch's CUDA wheel with it, or set compile=False.")
        return
    from torch._inductor import cpp_builder, exc  # loads most of the compiler

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ValueError("compile=True needs a C++ compiler, and none was found: install g++ (or name one in CXX), or set compile=False.") from error


class Transformer(nn.Module):
    """DBRX-style decoder. ``experts_backend``: reference | grouped_mm | megablocks (models/experts.py).

    Builds on the meta device (``with torch.device("meta")``): sizes can be checked without memory. Weights are drawn by
    torch's global generator (``initial_std``), norms are 1.
    """

    def __init__(self, config: ModelConfig, experts_backend: str = "grouped_mm") -> None:
        super().__init__()
        self.config = config
        self.transformer = Decoder(config, experts_backend)
        self.lm_head = Linear(config.d_model, config.vocab_size)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2 and not parameter.is_meta:
                nn.init.normal_(parameter, std=initial_std(config, name))

    def forward(
        self, tokens_BT: Tensor, *, document_ids_BT: Tensor | None = None, positions: Tensor | None = None,
        cache: KVCache | None = None, lengths_B: Tensor | None = None,
    ) -> ModelOutput:  # fmt: skip
        """Logits for every position, see ``hidden`` for the arguments."""
        hidden_BTD, router = self._run(tokens_BT, document_ids_BT, positions, cache, lengths_B)
        return ModelOutput(self.lm_head(hidden_BTD), router)

    def hidden(
        self, tokens_BT: Tensor, *, document_ids_BT: Tensor | None = None, positions: Tensor | None = None,
        cache: KVCache | None = None, lengths_B: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Final normed hidden states (B, T, D); ``model.lm_head`` of the rows you need gives their logits.

        ``tokens_BT`` int64. ``document_ids_BT``: equal within a document, -1 on padding; positions restart and attention stops at a
        boundary, so a document's outputs do not depend on where it is packed. ``positions`` (B, T) or (T,) overrides the
        rotary positions. ``cache``: keys and values of earlier tokens; the new tokens continue them and are appended.
        ``lengths_B`` (only with a cache): how many tokens of each row are real, the rest is right padding.
        """
        return self._run(tokens_BT, document_ids_BT, positions, cache, lengths_B)[0]

    def run_blocks(self, *, activation_checkpointing: bool, compiled: bool) -> None:
        """How blocks compute in training, up to rounding never what. Raises ValueError when ``compiled`` is asked for without a compiler."""
        if compiled:
            require_compiler(self.lm_head.weight.device.type)
        for block in self.transformer.blocks:
            block.recompute = activation_checkpointing
            block.compiled = torch.compile(block._body) if compiled else None

    def forward_loss(
        self, tokens_BT: Tensor, document_ids_BT: Tensor, loss_mask_BT: Tensor | None = None, *, n_targets: int | None = None, share: float = 1.0
    ) -> LossOutput:
        """Mean next-token loss inside documents plus the weighted router losses.

        No target lies across a document boundary or on padding (id -1). ``loss_mask_BT`` (bool): tokens that count as targets.
        For a micro-batch: ``n_targets`` of the whole batch, ``share`` of its tokens that lie here.
        """
        counts_BT = is_target(document_ids_BT)
        if loss_mask_BT is not None:
            counts_BT = counts_BT & loss_mask_BT[:, 1:].bool()
        row, column = counts_BT.nonzero(as_tuple=True)
        hidden_BTD, router = self._run(tokens_BT, document_ids_BT, None, None, None)
        total = summed_cross_entropy(hidden_BTD[row, column], self.lm_head.weight, tokens_BT[row, column + 1])
        next_token_loss = total / (max(1, len(row)) if n_targets is None else n_targets)
        scores, logits, counts = ([getattr(s, name) for s in router] for name in ("scores_NE", "logits_NE", "tokens_per_expert_E"))
        balance = share * load_balancing_loss(
            scores_per_layer=scores, tokens_per_expert_per_layer=counts, top_k=self.config.top_k, weight=self.config.moe_loss_weight
        )
        z_weight = self.config.router_z_loss_weight
        with torch.set_grad_enabled(torch.is_grad_enabled() and z_weight > 0):
            z = share * router_z(logits)
        loss = next_token_loss + balance
        return LossOutput(
            loss + z_weight * z if z_weight else loss, next_token_loss, balance, len(row), torch.stack(counts), share * mean_confidence(scores).detach(), z
        )

    def _run(
        self, tokens_BT: Tensor, document_ids_BT: Tensor | None, positions: Tensor | None, cache: KVCache | None, lengths_B: Tensor | None
    ) -> tuple[Tensor, list[RouterStats]]:
        context = self._context(tokens_BT, document_ids_BT, positions, cache, lengths_B)
        x_BTD = self.transformer.wte(tokens_BT)
        router = []
        for layer, block in enumerate(self.transformer.blocks):
            x_BTD, stats = block(x_BTD, context, layer)
            router.append(stats)
        if cache is not None:
            cache.advance(tokens_BT.shape[1], lengths_B)
        return self.transformer.norm_f(x_BTD), router

    def _context(
        self, tokens_BT: Tensor, document_ids_BT: Tensor | None, positions: Tensor | None, cache: KVCache | None, lengths_B: Tensor | None
    ) -> _Context:
        n_positions, device = tokens_BT.shape[1], tokens_BT.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else self.lm_head.weight.dtype
        counted_N = allowed = ends = None
        if cache is not None:
            if document_ids_BT is not None:
                raise ValueError("A KV cache continues one document per row: give either document_ids_BT or cache, not both.")
            cached_positions = cache.plan(tokens_BT)
            positions = cached_positions if positions is None else positions
        elif lengths_B is not None:
            raise ValueError("lengths_B only has a meaning with a cache: mark padding in document_ids_BT by -1.")
        elif document_ids_BT is not None:
            within_document = document_positions(document_ids_BT)
            if fits(device, dtype, self.config.head_dim):
                ends = document_ends(within_document)
            else:
                causal = torch.ones(n_positions, n_positions, dtype=torch.bool, device=device).tril()
                allowed = causal & (document_ids_BT[:, :, None] == document_ids_BT[:, None, :])
            positions = within_document if positions is None else positions
            counted_N = (document_ids_BT.flatten() >= 0).nonzero().squeeze(1)
            counted_N = None if len(counted_N) == document_ids_BT.numel() else counted_N
        elif positions is None:
            positions = torch.arange(n_positions, device=device)
        positions = positions if positions.ndim == 2 else positions[None]
        if cache is None:
            cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta, dtype)
        else:  # one row per position: a sine differs in its last bit with its place in a tensor (vector or remainder code)
            table = torch.arange(rounded_up(int(positions.max()) + 1, BLOCK), device=device)
            cos, sin = (t[positions] for t in rotary_tables(table, self.config.head_dim, self.config.rope_theta, dtype))
        mask, blocks = None, ()  # built once for all layers
        if allowed is not None and device.type == "cpu" and n_positions >= LEAST_POSITIONS:
            blocks = query_blocks(document_ids_BT, dtype)
        elif allowed is not None:
            mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))[:, None]
        return _Context(cos[:, :, None], sin[:, :, None], mask, ends, counted_N, cache, blocks)
