"""One NaN costs one step, a spike after a spike is caught, and when skipping does not help the training goes back without the batches at fault."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import MODEL, sequences

from models import checkpoint
from models.guards import Guard, RepeatedSpikes, spread_above
from models.loop_config import LoopConfig
from models.packed_sequences import PackedSequences
from models.train_loop import Trainer, new_model, replay

pytestmark = pytest.mark.usefixtures("one_thread")


def judged(losses: list[float], norms: list[float] | None = None, sigmas: float = 6.0) -> list[str]:
    guard, reasons = Guard(sigmas=sigmas), []
    for position, (loss, norm) in enumerate(zip(losses, norms or [1.0] * len(losses), strict=True)):
        reasons.append(guard.why_skip(finite=bool(np.isfinite([loss, norm]).all()), loss=loss, grad_norm=norm))
        guard.record(position, reasons[-1], loss=loss, grad_norm=norm)
    return reasons


def noisy(n: int, seed: int = 0) -> list[float]:
    return (3.0 + 0.1 * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_one_nan_costs_one_step() -> None:
    losses = noisy(200)
    losses[100] = float("nan")
    assert [i for i, reason in enumerate(judged(losses)) if reason] == [100]


def test_a_second_spike_after_a_spike_is_caught() -> None:
    losses = noisy(200)
    losses[100] += 30.0
    losses[103] += 5.0
    assert {i: reason for i, reason in enumerate(judged(losses)) if reason} == {100: "spike", 103: "spike"}


def test_a_gradient_spike_with_an_ordinary_loss_is_one() -> None:
    norms = np.exp(0.3 * np.random.default_rng(1).standard_normal(200)).tolist()
    norms[150] = 100.0
    assert [i for i, reason in enumerate(judged(noisy(200), norms)) if reason] == [150]


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_training_curves_hold_no_spike(seed: int) -> None:
    """Steep falls, plateaus, the drop when the learning rate decays; of gradient norms with heavy tails, one in five hundred at most."""
    rng, steps = np.random.default_rng(seed), np.arange(3000)
    falling = 2.5 + 8.0 * (steps + 30.0) ** -0.35 * 30**0.35 - 0.3 * np.clip((steps - 2100) / 900, 0, 1)
    plateau = np.where(steps < 400, 7.0, 7.0 - 3.0 * (1 - np.exp(-(steps - 400) / 150)))
    for curve in (falling, plateau):
        losses = (curve + 0.08 * rng.standard_normal(3000)).tolist()
        assert [i for i, reason in enumerate(judged(losses, np.exp(0.4 * rng.standard_normal(3000)).tolist())) if reason] == []
        assert sum(map(bool, judged(losses, np.exp(0.4 * rng.standard_t(5, 3000)).tolist()))) <= 6


def test_a_spike_in_a_steep_fall_is_seen() -> None:
    losses = (np.linspace(11.0, 5.0, 64) + 0.05 * np.random.default_rng(0).standard_normal(64)).tolist()
    assert [i for i, reason in enumerate(judged([*losses[:60], losses[60] + 2.0, *losses[61:]])) if reason] == [60]


def test_nothing_is_judged_before_there_is_enough_to_compare_with_or_without_sigmas() -> None:
    assert judged([3.0] * 19 + [50.0])[-1] == ""
    assert judged([3.0] * 20 + [50.0])[-1] == "spike"
    assert judged([3.0] * 100 + [50.0], sigmas=0.0)[-1] == ""


def test_spread_above_a_line_is_zero_and_counts_residual_spreads() -> None:
    assert spread_above([5.0 + 0.1 * i for i in range(40)], 9.0, 0.01) == pytest.approx(0.0, abs=1e-9)
    values = [1.0 if i % 2 else -1.0 for i in range(40)]
    assert spread_above(values, 6.0, 0.01) == pytest.approx(6.0, rel=0.05)


class InTheirOrder:
    """Sequences as they lie, so that a test knows which step reads what."""

    def __init__(self, n_sequences: int, batch_sequences: int) -> None:
        self.seed, self.batch_sequences, self.n_sequences = 1, batch_sequences, n_sequences

    def batch(self, step: int) -> np.ndarray:
        return np.arange(step * self.batch_sequences, (step + 1) * self.batch_sequences)

    def digest(self) -> str:
        return "in-their-order"


LOOP = LoopConfig(steps=60, batch_sequences=4, learning_rate=1e-2, spike_sigmas=6.0, precision="fp32", decay_fraction=0.1)


def bad_at(*steps: int, loop: LoopConfig = LOOP) -> Trainer:
    """A training whose batches at ``steps`` hold noise: their loss is far above what is learnt by then."""
    data = sequences(240)
    noise = np.random.default_rng(3)
    tokens = data.tokens.copy()
    for step in steps:
        tokens[step * 4 : step * 4 + 4] = noise.integers(0, 64, size=(4, 32))
    data = PackedSequences(tokens, data.boundaries, data.n_tokens)
    return Trainer(new_model(replace(MODEL, init="by_width"), seed=1), loop, data, InTheirOrder(240, 4))


def test_batches_of_noise_are_skipped_and_the_rest_trains_as_without_them() -> None:
    run, plain = bad_at(40, 44), bad_at()
    metrics, undisturbed = ([trainer.step() for _ in range(60)] for trainer in (run, plain))
    assert {m.step: m.skipped_because for m in metrics if m.skipped} == {41: "spike", 45: "spike"}
    assert [m.step for m in undisturbed if m.skipped] == []
    assert run.skipped_steps == 2 and run.guard.skipped == [40, 44]
    assert metrics[-1].loss == pytest.approx(undisturbed[-1].loss, rel=0.1)


def until_it_spikes(run: Trainer, folder: Path, every: int = 10) -> tuple[RepeatedSpikes, list[float]]:
    losses = []
    with pytest.raises(RepeatedSpikes) as caught:
        while not run.finished:
            losses.append(run.step().loss)
            if run.step_number % every == 0:
                run.save(folder)
    return caught.value, losses


def finish(run: Trainer) -> dict[int, float]:
    losses = {}
    while not run.finished:
        metrics = run.step()
        losses[metrics.step] = metrics.loss
    return losses


def folder_of(parent: Path, step: int) -> Path:
    return parent / f"step-{step:010d}"


def test_repeated_spikes_roll_back_and_leave_the_batches_out(tmp_path: Path) -> None:
    bad = (43, 44, 45, 46)
    run = bad_at(*bad)
    spikes, _ = until_it_spikes(run, tmp_path)
    assert (spikes.batches, spikes.before, spikes.roll_backs) == ([42, 43, 44, 45, 46], 42, 1)
    run.roll_back(folder_of(tmp_path, 40), spikes)
    assert run.step_number == 40
    saved = run.save(tmp_path / "rolled")
    assert checkpoint.read(saved.path)[1]["guard"]["excluded"] == [42, 43, 44, 45, 46]
    losses = finish(run)
    assert sorted(losses) == [41, 42, *range(48, 61)]
    assert run.tokens == 60 * 4 * 29 and run.skipped_steps == 5

    told = bad_at(*bad)  # an uninterrupted run that was told beforehand
    told.guard.excluded, told.guard.roll_backs = list(spikes.excluded), 1
    assert {step: loss for step, loss in finish(told).items() if step > 40} == losses
    for other in (bad_at(*bad), bad_at(*bad)):  # a new process, from before and from after it was saved
        other.roll_back(folder_of(tmp_path, 40), spikes)
        assert finish(other) == losses
    again = bad_at(*bad)
    again.load(saved.path)
    assert finish(again) == losses
    assert again.save(tmp_path / "a").sha256 == run.save(tmp_path / "b").sha256


def test_without_a_checkpoint_a_new_trainer_starts_over_without_the_batches(tmp_path: Path) -> None:
    spikes, losses = until_it_spikes(bad_at(23, 24, 25, 26), tmp_path, every=100)
    new = bad_at(23, 24, 25, 26)
    new.roll_back(None, spikes)
    again = finish(new)
    assert [again[step] for step in range(1, 23)] == losses[:22]
    assert [step for step in range(1, 61) if step not in again] == [23, 24, 25, 26, 27]


def test_a_checkpoint_after_the_first_batch_at_fault_is_refused(tmp_path: Path) -> None:
    run = bad_at(40, 41, 42, 43)
    spikes, _ = until_it_spikes(run, tmp_path, every=8)
    with pytest.raises(ValueError, match="earlier checkpoint"):
        run.roll_back(folder_of(tmp_path, 40), spikes)


def test_a_training_that_spikes_whatever_is_left_out_stops(tmp_path: Path) -> None:
    run = bad_at(*range(30, 60))
    start = run.save(tmp_path).path
    for roll_backs in (1, 2, 3):
        spikes, _ = until_it_spikes(run, tmp_path / "unused", every=100)
        assert spikes.roll_backs == roll_backs
        run.roll_back(start, spikes)
    with pytest.raises(FloatingPointError, match="after 3 roll-backs") as stopped:
        finish(run)
    assert not isinstance(stopped.value, RepeatedSpikes)


def test_isolated_bad_batches_do_not_roll_back() -> None:
    assert judged([100.0 if i in (60, 80, 100, 120, 140, 160) else loss for i, loss in enumerate(noisy(200))]).count("spike") == 6


def test_any_step_is_computed_again_exactly(tmp_path: Path) -> None:
    run = bad_at(40, loop=replace(LOOP, balance_bias_rate=0.01, precision="bf16"))
    metrics = []
    while not run.finished:
        metrics.append(run.step())
        if run.step_number in (20, 37):
            run.save(tmp_path)
    for step, since in ((21, 20), (36, 20), (38, 37), (41, 37), (44, 37), (60, 37)):  # step 41 is the spike, which is skipped again
        found = replay(bad_at(40, loop=run.loop), folder_of(tmp_path, since), step)
        for name in ("step", "tokens", "loss", "load_balancing_loss", "grad_norm", "learning_rate", "skipped_because", "expert_load_entropy", "router_z"):
            assert getattr(found, name) == getattr(metrics[step - 1], name), (step, name)


def test_a_step_that_cannot_be_computed_again_says_why(tmp_path: Path) -> None:
    run = bad_at(43, 44, 45, 46)
    spikes, _ = until_it_spikes(run, tmp_path)
    run.roll_back(folder_of(tmp_path, 40), spikes)
    saved = run.save(tmp_path / "rolled").path
    with pytest.raises(ValueError, match=r"Step 45 trained nothing.*\[43, 44, 45, 46, 47\]"):
        replay(bad_at(43, 44, 45, 46), saved, 45)
    for step in (40, 61):
        with pytest.raises(ValueError, match="cannot be computed"):
            replay(bad_at(43, 44, 45, 46), saved, step)
    run.guard.excluded = [*run.guard.excluded, 57, 58, 59]
    with pytest.raises(ValueError, match="Step 60 trained nothing"):
        replay(bad_at(43, 44, 45, 46), run.save(tmp_path / "last").path, 60)


def test_a_nan_batch_in_a_real_step_costs_that_step_only() -> None:
    run, plain = bad_at(), bad_at()
    weight = run.model.lm_head.weight
    for step in range(35):
        handle = weight.register_hook(lambda grad: grad * float("nan")) if step == 30 else None
        assert run.step().skipped_because == ("not finite" if step == 30 else "")
        if handle:
            handle.remove()
        plain.step()
    assert (run.skipped_steps, len(run.guard.accepted)) == (1, 34)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
