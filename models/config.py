"""Sizes of a DBRX-style mixture-of-experts decoder, and what follows from them (parameters, FLOPs). Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

ADDED = {"added": True}  # as in jobs/contract.py: at its default such a field is no part of a model's identity


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of the decoder; defaults that are not sizes are DBRX's (databricks/dbrx-base config.json).

    ``top_k`` of ``n_experts`` experts run per token; each is a SiLU GLU of width ``ffn_hidden``.
    ``init``: how weights are drawn. ``fixed``: N(0, init_std) everywhere, DBRX's, meant for its width. ``by_width``: what keeps every
    activation and update of the same size at any width, so that a small proxy behaves like its target (see transformer.initial_std).
    ``base_width``: the d_model a learning rate was tuned at; initial weights and learning rates then follow d_model by the rule of
    models/parameter_groups.py (muP), needs ``init="by_width"``; 0 is none. ``router_z_loss_weight``: of
    ST-MoE's loss that keeps router logits small (theirs: 0.001); 0 as in DBRX is none.
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    ffn_hidden: int
    vocab_size: int
    max_seq_len: int
    n_experts: int = 16
    top_k: int = 4
    clip_qkv: float = 8.0
    rope_theta: float = 500_000.0
    moe_loss_weight: float = 0.05
    init_std: float = 0.02
    init: str = "fixed"
    router_z_loss_weight: float = field(default=0.0, metadata=ADDED)
    base_width: int = field(default=0, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or self.n_heads % self.n_kv_heads:
            raise ValueError(f"d_model {self.d_model} must divide by n_heads {self.n_heads}, and that by n_kv_heads {self.n_kv_heads}")
        if self.d_model % 8 or self.ffn_hidden % 8:
            raise ValueError(f"grouped_mm needs 16-byte strides: d_model {self.d_model} and ffn_hidden {self.ffn_hidden} must be multiples of 8")
        if self.init not in ("fixed", "by_width"):
            raise ValueError(f"init must be 'fixed' or 'by_width', not {self.init!r}")
        if self.base_width < 0 or (self.base_width and self.init != "by_width"):
            raise ValueError(f"base_width {self.base_width} must not be negative and, if given, needs init='by_width', not {self.init!r}")
        if self.router_z_loss_weight < 0:
            raise ValueError(f"router_z_loss_weight {self.router_z_loss_weight} must not be negative")
        if not 1 <= self.top_k <= self.n_experts:
            raise ValueError(f"top_k {self.top_k} must lie between 1 and n_experts {self.n_experts}")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    def _params(self, experts: int) -> int:
        attention = self.d_model * (self.d_model + 2 * self.n_kv_heads * self.head_dim) + self.d_model**2
        block = attention + 2 * self.d_model + self.d_model * self.n_experts + 3 * experts * self.d_model * self.ffn_hidden
        return 2 * self.vocab_size * self.d_model + self.n_layers * block + self.d_model

    @property
    def params_total(self) -> int:
        """All parameters (DBRX: 131.6B)."""
        return self._params(self.n_experts)

    @property
    def params_active(self) -> int:
        """Parameters one token passes through (DBRX: 36.5B)."""
        return self._params(self.top_k)

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs of the model per token position, for MFU: what forward and backward need, not what recomputation or padding adds.

        6 per parameter a token passes through (2 forward, 4 backward), so of the experts only ``top_k``, the router, the output layer; not
        the input embedding, which is a lookup; norms are counted as if they were products (D per norm: DBRX 0.001 %). Plus attention
        6·L·D·T for causal sequences of ``max_seq_len`` (half of PaLM's 12·L·D·T, appendix B); documents packed into one sequence do less.
        Not counted: sorting by expert, softmax, rotary positions, optimiser.
        """
        return 6.0 * (self.params_active - self.vocab_size * self.d_model) + 6.0 * self.n_layers * self.d_model * self.max_seq_len
