"""Balancing experts without a loss: a bias per expert that counts when experts are chosen and not when they are weighted.

DeepSeek-V3 (2024, section 2.1.2; Wang et al. 2024, arXiv 2408.15664): after every step the bias of an expert with less than the mean
load rises by a fixed rate, that of one with more falls. The gradient of no loss is disturbed.

A DBRX layer has no such parameter, and it cannot be folded into one (norms and router have no bias, gates come from unbiased scores). So
unlike DeepSeek's it steers training alone: it fades with the learning rate and is 0 at the last step, and in eval mode experts are chosen
by scores only. What is measured, exported and served is therefore always the plain model.
Change here: how the bias moves. Not here: how it is added (moe.route), when it moves (train_loop.py).
"""

from __future__ import annotations

import numpy as np
import torch

from models.transformer import Transformer


class BalanceBias:
    """The biases of all layers of ``model``, which uses them in training mode from now on. ``bias_LE``: float64 on the host."""

    def __init__(self, model: Transformer, rate: float) -> None:
        config = model.config
        self.rate = rate
        self.bias_LE = np.zeros((config.n_layers, config.n_experts))
        self._in_use_LE = torch.zeros(self.bias_LE.shape, device=model.lm_head.weight.device)
        for block, bias_E in zip(model.transformer.blocks, self._in_use_LE, strict=True):
            block.ffn.balance_bias_E = bias_E

    def use(self, share: float) -> None:
        """Let the model choose experts by the bias times ``share``."""
        self._in_use_LE.copy_(torch.from_numpy(self.bias_LE * share))

    def update(self, tokens_LE: np.ndarray) -> None:
        """Move by the counts of one step (over all its micro-batches and workers)."""
        self.bias_LE += self.rate * np.sign(tokens_LE.mean(1, keepdims=True) - tokens_LE)
