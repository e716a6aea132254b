"""The balancing bias chooses experts, never weights them, fades, and is no part of the model that is measured or exported."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import LOOP, MODEL, sequences

from models.balance_bias import BalanceBias
from models.moe import route
from models.train_loop import Trainer, new_model

pytestmark = pytest.mark.usefixtures("one_thread")
BIASED = replace(LOOP, steps=40, batch_sequences=8, balance_bias_rate=0.01)


def skewed_trainer(loop=BIASED) -> Trainer:
    """Every token prefers the first experts: the router adds a feature that is the same for all of them."""
    model = new_model(replace(MODEL, moe_loss_weight=0.0, init="by_width"), seed=1)
    with torch.no_grad():
        model.transformer.wte.weight[:, 0] = 8.0
        for block in model.transformer.blocks:
            block.ffn.router.layer.weight[:, 0] = torch.linspace(1.0, -1.0, 16)
    return Trainer(model, loop, sequences(64))


def test_experts_are_chosen_by_biased_scores_and_weighted_by_plain_ones() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    found, gates, indices = route(torch.log(scores), 2, torch.tensor([0.5, 0.0, 0.0, -0.2]))
    assert sorted(indices.tolist()[0]) == [0, 1]
    gate = dict(zip(indices.tolist()[0], gates.tolist()[0], strict=True))
    assert (gate[0], gate[1]) == pytest.approx((0.1 / 0.5, 0.4 / 0.5))
    torch.testing.assert_close(found, scores)
    plain, zero = route(torch.log(scores), 2), route(torch.log(scores), 2, torch.zeros(4))
    assert all(torch.equal(a, b) for a, b in zip(plain, zero, strict=True))


def test_the_bias_moves_by_its_rate_against_the_load() -> None:
    bias = BalanceBias(new_model(MODEL, seed=1), 0.25)
    counts = np.zeros((2, 16), dtype=np.int64)
    counts[0, :2] = 8  # mean 1
    counts[1] = 5
    bias.update(counts)
    assert bias.bias_LE.tolist() == [[-0.25, -0.25, *[0.25] * 14], [0.0] * 16]


def test_it_balances_what_no_loss_balances() -> None:
    plain, biased = skewed_trainer(replace(BIASED, balance_bias_rate=0.0)), skewed_trainer()
    without, with_bias = ([run.step() for _ in range(28)][-1] for run in (plain, biased))
    assert max(without.expert_load_max) > 3.5 and sum(without.starved_experts) > 4
    assert max(with_bias.expert_load_max) < 2.5 and sum(with_bias.starved_experts) <= 1


def test_it_fades_with_the_learning_rate_and_the_last_step_is_the_plain_models() -> None:
    run = skewed_trainer()
    used = []
    for _ in range(40):
        run.step()
        used.append(run.model.transformer.blocks[0].ffn.balance_bias_E.abs().max().item())
    largest = np.abs(run.balance_bias.bias_LE[0]).max()
    assert used[0] == 0.0 and used[27] > 0.05
    assert used[-1] == 0.0 and 0 < used[-2] < 0.2 * largest
    with pytest.raises(ValueError, match="Set decay_fraction"):
        replace(BIASED, decay_fraction=0.0)
    replace(BIASED, decay_fraction=0.0, schedule="cosine")


def test_evaluation_and_the_state_dict_know_no_bias() -> None:
    run = skewed_trainer()
    for _ in range(10):
        run.step()
    plain = new_model(run.model.config, seed=2)
    plain.load_state_dict(run.model.state_dict())  # strict: the same names
    other = Trainer(plain, replace(BIASED, balance_bias_rate=0.0), sequences(64))
    assert run.held_out_loss(sequences(8, seed=3), 8) == other.held_out_loss(sequences(8, seed=3), 8)
    tokens, ids = sequences(64).batch([0, 1])
    with torch.no_grad():
        assert float(run.model.forward_loss(tokens, ids).loss) != float(plain.train().forward_loss(tokens, ids).loss)


def test_a_run_cut_in_two_has_the_same_biases_and_weights(tmp_path: Path) -> None:
    straight, first = skewed_trainer(), skewed_trainer()
    losses = [straight.step().loss for _ in range(20)]
    for _ in range(9):
        first.step()
    second = skewed_trainer()
    second.load(first.save(tmp_path).path)
    assert [second.step().loss for _ in range(11)] == losses[9:]
    assert np.array_equal(second.balance_bias.bias_LE, straight.balance_bias.bias_LE)


def test_a_skipped_batch_does_not_move_the_bias() -> None:
    run = skewed_trainer()
    run.step()
    before = run.balance_bias.bias_LE.copy()
    run.model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
    assert run.step().skipped
    assert np.array_equal(run.balance_bias.bias_LE, before)
