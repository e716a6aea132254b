"""What keeps a training from being ruined by a batch: nothing that is not finite moves the weights, spikes are skipped, repeated ones rolled back.

The window a loss is compared with holds accepted values only. (OLMo-core's SkipStepOptimizer keeps skipped ones: after one NaN every comparison
is with NaN and 129 steps are skipped; after one spike the spread is so wide that the next one passes.)
Change here: what a spike is, when skipping is not enough. Not here: what is done about it (Trainer.roll_back), finding a checkpoint to go
back to (jobs/services/training.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WINDOW, ENOUGH = 64, 20  # accepted steps that a new one is compared with, and how many there must be
LOSS_SPREAD, NORM_SPREAD = 0.02, 0.3  # the least spread assumed: of the loss as a share of it, of the logarithm of the gradient norm
REPEATS, RECENT = 4, 16  # so many skipped of so many steps: the weights themselves are hurt
MAX_SKIPPED_IN_A_ROW = 10  # without a spike guard
MAX_ROLL_BACKS = 3


class RepeatedSpikes(FloatingPointError):
    """Skipping did not help: go back to a checkpoint of step ``before`` or earlier and leave out ``excluded`` (Trainer.roll_back).

    ``batches``: positions in the data order (steps from 0), ascending: from the batch before the first spike, whose update may have caused it,
    to the last. ``excluded``: these and those of earlier roll-backs. ``roll_backs``: how many there will have been.
    """

    def __init__(self, batches: list[int], excluded: list[int], roll_backs: int) -> None:
        self.batches, self.excluded, self.roll_backs = batches, excluded, roll_backs
        self.before = batches[0]
        super().__init__(
            f"{REPEATS} of the last {RECENT} steps were spikes or not finite (batches {batches[0]} to {batches[-1]}): go back to a checkpoint of step "
            f"{self.before} or earlier and skip them. If nothing does that, lower learning_rate and start again."
        )


def spread_above(values: list[float], value: float, least: float) -> float:
    """How many spreads ``value`` lies above what ``values`` lead one to expect.

    Expected is their straight line continued or the mean of the last 16, whichever is higher (so that a loss that stops falling is no spike);
    the spread is that of the residuals from the line, so a steep fall does not hide a spike, and ``least`` at least.
    """
    places = np.arange(len(values), dtype=float) - (len(values) - 1) / 2
    y = np.asarray(values)
    slope = float(places @ y / (places @ places))
    residuals = y - y.mean() - slope * places
    expected = max(float(y.mean()) + slope * (places[-1] + 1), float(y[-16:].mean()))
    return (value - expected) / max(float(np.sqrt(residuals @ residuals / (len(values) - 2))), least)


@dataclass
class Guard:
    """Judges every step of one training. ``sigmas``: how many spreads above expectation loss or gradient norm may lie; 0: any finite ones pass.

    ``skipped``: batches met and skipped; ``excluded``: batches a roll-back leaves out; both are positions in the data order, ascending, and
    with the rest of ``state`` part of the checkpoint, so that a resumed or replayed run decides the same.
    """

    sigmas: float = 0.0
    accepted: list[tuple[float, float]] = field(default_factory=list)  # (loss, log of gradient norm) of the last WINDOW accepted steps
    skipped: list[int] = field(default_factory=list)
    excluded: list[int] = field(default_factory=list)
    roll_backs: int = 0
    in_a_row: int = 0

    def why_skip(self, *, finite: bool, loss: float, grad_norm: float) -> str:
        """Why a step must not move the weights: ``not finite``, ``spike``, or empty when it may. Changes nothing."""
        if not finite:
            return "not finite"
        if not self.sigmas or len(self.accepted) < ENOUGH:
            return ""
        losses, norms = (list(column) for column in zip(*self.accepted, strict=True))
        high = spread_above(losses, loss, LOSS_SPREAD * abs(losses[-1])) > self.sigmas
        return "spike" if high or spread_above(norms, _log(grad_norm), NORM_SPREAD) > self.sigmas else ""

    def record(self, position: int, reason: str, *, loss: float, grad_norm: float) -> None:
        """Remember how the step at ``position`` was judged. Raises RepeatedSpikes, or FloatingPointError when nothing can be done any more."""
        if not reason:
            self.in_a_row = 0
            if self.sigmas:
                self.accepted = [*self.accepted, (loss, _log(grad_norm))][-WINDOW:]
            return
        self.in_a_row += 1
        self.skipped.append(position)
        recent = [p for p in self.skipped if p > position - RECENT]
        if self.sigmas and len(recent) >= REPEATS:
            self._give_up_or_roll_back(recent)
        if self.in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"Loss or gradients were not finite in {MAX_SKIPPED_IN_A_ROW} batches in a row (step {position}): training diverged. "
                "Lower learning_rate or train in fp32, and resume from an earlier checkpoint."
            )

    def _give_up_or_roll_back(self, recent: list[int]) -> None:
        if self.roll_backs >= MAX_ROLL_BACKS:
            raise FloatingPointError(
                f"Training spikes again after {self.roll_backs} roll-backs (batches {recent}, left out so far {len(self.excluded)}): it diverges, whatever "
                "the data. Lower learning_rate or lengthen the warmup, and start again."
            )
        batches = [p for p in range(max(0, recent[0] - 1), recent[-1] + 1) if p not in self.excluded]
        raise RepeatedSpikes(batches, sorted({*self.excluded, *batches}), self.roll_backs + 1)

    def state(self) -> dict[str, Any]:
        """Plain JSON; numbers survive it exactly."""
        return {
            "accepted": [list(pair) for pair in self.accepted], "skipped": self.skipped, "excluded": self.excluded, "roll_backs": self.roll_backs,
            "in_a_row": self.in_a_row,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.accepted = [(loss, norm) for loss, norm in state["accepted"]]
        self.skipped, self.excluded = list(state["skipped"]), list(state["excluded"])
        self.roll_backs, self.in_a_row = state["roll_backs"], state["in_a_row"]


def _log(grad_norm: float) -> float:
    return math.log(max(grad_norm, 1e-30))
