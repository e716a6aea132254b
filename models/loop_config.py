"""How one training runs: steps, learning rate over time, batches, guards. Standard library only.

Change here: a setting of the loop, a schedule. Not here: the architecture's sizes (config.py), what a step does (train_loop.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FINAL_SHARE = 0.1  # the learning rate decays to this share of its peak
SCHEDULES = ("wsd", "cosine")
EXECUTION = ("micro_batch_sequences", "activation_checkpointing", "compile")  # how a step is computed, not what: a resumed run may change them


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to train.

    ``schedule``: after a linear warmup, ``wsd`` (warmup-stable-decay) is constant and then falls linearly to 10 % over the last ``decay_fraction``
    of steps; ``cosine`` falls along a half cosine to 10 % at the last step (``decay_fraction`` means nothing then).
    ``micro_batch_sequences``: at most so many sequences pass through the model at once, their gradients add up to the batch's; 0 is all.
    ``activation_checkpointing``: keep only each block's input and compute the rest again in backward: less memory, a third more FLOPs.
    ``compile``: blocks through torch.compile. ``balance_bias_rate``: see models/balance_bias.py; 0 is no bias.
    """

    steps: int
    batch_sequences: int
    learning_rate: float
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.3
    weight_decay: float = 0.1  # on matrices only
    grad_clip: float = 1.0
    seed: int = 1
    precision: str = "bf16"  # bf16: autocast with float32 masters | fp32
    schedule: str = "wsd"
    micro_batch_sequences: int = 0
    activation_checkpointing: bool = False
    compile: bool = False
    balance_bias_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', not {self.precision!r}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}.")
        if self.steps < 1 or self.batch_sequences < 1 or self.micro_batch_sequences < 0:
            raise ValueError(
                f"steps {self.steps} and batch_sequences {self.batch_sequences} must be at least 1, micro_batch_sequences {self.micro_batch_sequences} at "
                "least 0 (0: the whole batch at once)."
            )
        if min(self.warmup_fraction, self.decay_fraction) < 0 or self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(f"warmup_fraction {self.warmup_fraction} and decay_fraction {self.decay_fraction} must not be negative or overlap.")
        if self.balance_bias_rate < 0:
            raise ValueError(f"balance_bias_rate {self.balance_bias_rate} must not be negative.")
        if self.balance_bias_rate and self.share_at(self.steps - 1) > 0:
            raise ValueError(
                f"The balancing bias fades with the learning rate, and with decay_fraction {self.decay_fraction} of {self.steps} steps that never falls: the "
                "trained model would need a bias that a DBRX folder cannot hold. Set decay_fraction, or balance_bias_rate=0."
            )

    def share_at(self, step: int) -> float:
        """How much of the decay is still to come at ``step`` (from 0): 1 before it, 0 at the last step (if it decays at all)."""
        if self.schedule == "cosine":
            start = max(0, round(self.steps * self.warmup_fraction) - 1)
            progress = max(0, step - start) / max(1, self.steps - 1 - start)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        decay = round(self.steps * self.decay_fraction)
        return max(0.0, min(1.0, (self.steps - 1 - step) / decay) if decay else 1.0)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of ``step`` (from 0); the last step has ``FINAL_SHARE`` of the peak (if it decays at all)."""
        warmup = round(self.steps * self.warmup_fraction)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return self.learning_rate * rise * (FINAL_SHARE + (1 - FINAL_SHARE) * self.share_at(step))
