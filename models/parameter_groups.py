"""Which parameters share a learning rate and a weight decay, and how both follow the width.

Decay falls on every matrix, embeddings and output included, and on no norm (nanoGPT's and GPT-3's rule; OLMo 2, arXiv 2501.00656, also leaves out
embeddings). torch's AdamW decays by learning rate times weight_decay (Loshchilov and Hutter 2019), so it follows the schedule.

With ``ModelConfig.base_width`` learning rates tuned at one width hold at others (Yang et al. 2022, arXiv 2203.03466, table 3, for Adam):
    parameter                        learning rate x     initial std (transformer.initial_std)
    embedding, norms                 1                   1, ones
    attention, experts               base/width          1/sqrt(fan-in), as without
    router, lm_head: width to a      base/width          of the base width x sqrt(base/width), base/width
      fixed number of outputs
The paper's output multiplier (table 8) is not used: under Adam, scaling initial weights and learning rate instead is the same function (its
lemma J.1), and leaves a plain DBRX state dict. A router is an output layer (Malasnicki et al. 2025, arXiv 2508.09752). Widths must differ by
the number of heads and in proportion by ffn_hidden; head_dim, layers, experts and top_k stay. Where the learning rate is scaled, weight decay is
scaled the other way, so that their product, what a step takes off a weight, stays (Wortsman et al. 2023, arXiv 2309.14322).
Change here: groups, the rule. Not here: initial weights (transformer.py), the schedule (loop_config.py).
"""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.transformer import Transformer


def learning_rate_scale(config: ModelConfig, name: str) -> float:
    """What the learning rate of the parameter ``name`` is multiplied by."""
    if not config.base_width or "norm" in name.rsplit(".", 2)[-2] or name.endswith("wte.weight"):
        return 1.0
    return config.base_width / config.d_model


def parameter_groups(model: Transformer, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for torch.optim with ``weight_decay`` and ``learning_rate_scale``, in the order their first parameters have in the model."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        scale = learning_rate_scale(model.config, name)
        decay = weight_decay / scale if parameter.ndim >= 2 else 0.0
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "learning_rate_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())
