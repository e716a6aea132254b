"""The trainer: resumes bit for bit, skips what is not finite, follows its schedule, learns."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import LOOP, MODEL, sequences, trainer

from models import checkpoint
from models.train_loop import LoopConfig, PackedSequences, Trainer, new_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_cut_in_two_equals_the_run_in_one_bit_for_bit(tmp_path: Path, precision: str) -> None:
    loop = replace(LOOP, precision=precision)
    straight = trainer(loop)
    losses = [straight.step().loss for _ in range(12)]
    first = trainer(loop)
    cut = [first.step().loss for _ in range(5)]
    info = first.save(tmp_path)
    second = Trainer(new_model(MODEL, seed=99), loop, sequences())  # every weight must come from the checkpoint
    second.load(checkpoint.load_latest_valid(tmp_path))
    cut += [second.step().loss for _ in range(7)]
    assert (info.step, info.tokens, info.sha256) == (5, 5 * 4 * 29, checkpoint.verify(info.path))
    assert cut == losses and second.finished and second.tokens == straight.tokens
    theirs = second.model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in straight.model.state_dict().items())
    assert straight.save(tmp_path / "a").sha256 == second.save(tmp_path / "b").sha256


def test_saving_does_not_change_the_run(tmp_path: Path) -> None:
    plain, saving = trainer(), trainer()
    for _ in range(4):
        expected = plain.step().loss
        saving.save(tmp_path)
        saving.held_out_loss(sequences(4, seed=5), 4)
        assert saving.step().loss == expected


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda: Trainer(new_model(MODEL, seed=1), replace(LOOP, learning_rate=1e-3), sequences()), "learning_rate"),
        (lambda: Trainer(new_model(replace(MODEL, top_k=2), seed=1), LOOP, sequences()), "top_k"),
        (lambda: Trainer(new_model(MODEL, seed=1), LOOP, sequences(seed=1)), "other sequences"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, other, what: str) -> None:
    first = trainer()
    first.step()
    info = first.save(tmp_path)
    with pytest.raises(ValueError, match=what):
        other().load(info.path)


def test_a_batch_that_is_not_finite_is_skipped_and_counted() -> None:
    run = trainer()
    run.step()
    norm = run.model.transformer.norm_f.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm[0] = math.nan
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    moments = {k: v.clone() for entry in run.optimizer.state.values() for k, v in entry.items()}
    metrics = run.step()
    assert metrics.skipped and not math.isfinite(metrics.loss) and run.skipped_steps == 1 and metrics.step == 2
    assert all(torch.equal(weight, run.model.state_dict()[name]) or name.endswith("norm_f.weight") for name, weight in before.items())
    assert all(torch.equal(v, moments[k]) for k, v in {k: v for entry in run.optimizer.state.values() for k, v in entry.items()}.items())
    with torch.no_grad():
        norm.copy_(kept)
    after = run.step()
    assert not after.skipped and math.isfinite(after.loss) and run.skipped_steps == 1


def test_finite_loss_with_a_gradient_that_is_not_finite_is_skipped_too() -> None:
    run = trainer()
    run.model.lm_head.weight.register_hook(lambda grad: grad * math.inf)
    metrics = run.step()
    assert math.isfinite(metrics.loss) and metrics.skipped
    assert all(torch.isfinite(weight).all() for weight in run.model.state_dict().values())


def test_a_diverged_run_stops_instead_of_skipping_for_ever() -> None:
    run = trainer(replace(LOOP, steps=50))
    with torch.no_grad():
        run.model.transformer.norm_f.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match="diverged"):
        for _ in range(50):
            run.step()
    assert run.skipped_steps == 10


def test_the_schedule_warms_up_holds_and_decays_to_a_tenth() -> None:
    loop = LoopConfig(steps=100, batch_sequences=1, learning_rate=1.0, warmup_fraction=0.1, decay_fraction=0.3)
    rates = [loop.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:70] == pytest.approx([1.0] * 60)
    assert rates[70] < 1.0 and rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[69:]))


def test_weight_decay_shrinks_matrices_only() -> None:
    run = trainer(replace(LOOP, weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    assert {name.rsplit(".", 2)[-2]: decay[id(p)] for name, p in run.model.named_parameters() if decay[id(p)] == 0} == {"norm_1": 0, "norm_2": 0, "norm_f": 0}
    assert len(decay) == len(list(run.model.parameters())) and decay[id(run.model.lm_head.weight)] == 0.5


def test_it_learns_what_is_predictable_and_the_held_out_loss_shows_it() -> None:
    run = trainer(LoopConfig(steps=60, batch_sequences=8, learning_rate=1e-2), sequences(200))
    before, n_tokens = run.held_out_loss(sequences(30, seed=9), 30)
    metrics = [run.step() for _ in range(60)]
    after, _ = run.held_out_loss(sequences(30, seed=9), 30)
    assert n_tokens == 30 * (15 + 12)
    assert before == pytest.approx(math.log(64), abs=0.1) and after < 1.0 and metrics[-1].loss < 1.0
    assert metrics[-1].tokens == 60 * 8 * 29 and 1.0 <= metrics[-1].expert_load_max_over_mean < 3.0
    with pytest.raises(ValueError, match="All 60 steps are done"):
        run.step()


def test_held_out_loss_is_a_mean_over_tokens_and_respects_its_limit() -> None:
    run = trainer()
    short, long = sequences(3, seed=2, padding=20), sequences(5, seed=3)
    both = PackedSequences(np.concatenate([short.tokens, long.tokens]), [[0, 16]] * 8, np.concatenate([short.n_tokens, long.n_tokens]))
    (a, n_a), (b, n_b), (c, n_c) = (run.held_out_loss(data, 100) for data in (short, long, both))
    assert n_c == n_a + n_b and c == pytest.approx((a * n_a + b * n_b) / n_c, rel=1e-5)
    assert run.held_out_loss(both, 3) == (pytest.approx(a, rel=1e-5), n_a)
    assert run.model.training


def test_a_batch_marks_documents_and_padding() -> None:
    data = PackedSequences(np.arange(16).reshape(2, 8), [[0, 3, 5], [0]], np.array([7, 8]))
    tokens, ids = data.batch([1, 0])
    assert tokens.dtype == torch.int64 and tokens.tolist() == [list(range(8, 16)), list(range(8))]
    assert ids.tolist() == [[0] * 8, [0, 0, 0, 1, 1, 2, 2, -1]]


def test_data_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        trainer(data=PackedSequences(np.full((2, 32), 64), [[0]] * 2, np.full(2, 32)))
    with pytest.raises(ValueError, match="no sequence"):
        trainer(data=PackedSequences(np.zeros((0, 32)), [], np.zeros(0)))
    with pytest.raises(ValueError, match="same sequences"):
        PackedSequences(np.zeros((2, 8)), [[0]], np.full(2, 8))
    with pytest.raises(ValueError, match="n_tokens"):
        PackedSequences(np.zeros((1, 8)), [[0]], np.full(1, 9))
    with pytest.raises(ValueError, match="precision"):
        replace(LOOP, precision="fp16")
