"""Decay on matrices only; with a base width, updates of every activation keep their size at any width and the base width itself is unchanged."""

from dataclasses import replace

import pytest
import torch
from small_training import LOOP, MODEL, sequences

from models.parameter_groups import learning_rate_scale, parameter_groups
from models.train_loop import Trainer, new_model

pytestmark = pytest.mark.usefixtures("one_thread")
BY_WIDTH = replace(MODEL, init="by_width")


def at_width(width: int, base_width: int):
    return replace(BY_WIDTH, d_model=width, n_heads=width // 16, n_kv_heads=width // 32, ffn_hidden=width, base_width=base_width)


def test_without_a_base_width_there_are_matrices_that_decay_and_norms_that_do_not() -> None:
    groups = parameter_groups(new_model(MODEL, seed=1), 0.1)
    assert [(g["weight_decay"], g["learning_rate_scale"], {p.ndim for p in g["params"]}) for g in groups] == [(0.1, 1.0, {2}), (0.0, 1.0, {1})]
    assert sum(len(g["params"]) for g in groups) == len(list(new_model(MODEL, seed=1).parameters()))


def test_learning_rates_and_decay_follow_the_table() -> None:
    model = new_model(at_width(128, 32), seed=1)
    scale = {name: learning_rate_scale(model.config, name) for name, _ in model.named_parameters()}
    block = "transformer.blocks.1."
    same = {"transformer.wte.weight", "transformer.norm_f.weight"} | {n for n in scale if ".norm_1." in n or ".norm_2." in n}
    assert {n for n, s in scale.items() if s == 1.0} == same
    assert {n for n, s in scale.items() if s == 0.25} == set(scale) - same
    assert scale[f"{block}norm_attn_norm.attn.Wqkv.weight"] == scale[f"{block}ffn.experts.mlp.w2"] == scale["lm_head.weight"] == 0.25
    for group in parameter_groups(model, 0.1):
        assert group["weight_decay"] * group["learning_rate_scale"] == pytest.approx(0.1 if group["params"][0].ndim == 2 else 0.0)


def test_the_schedule_moves_every_group_by_its_scale() -> None:
    run = Trainer(new_model(at_width(64, 32), seed=1), LOOP, sequences())
    rate = run.step().learning_rate
    assert {(g["learning_rate_scale"], g["lr"]) for g in run.optimizer.param_groups} == {(1.0, rate), (0.5, rate / 2)}


def test_at_its_own_width_the_rule_changes_no_bit() -> None:
    plain, based = (Trainer(new_model(replace(BY_WIDTH, base_width=b), seed=1), LOOP, sequences()) for b in (0, 32))
    assert [plain.step().loss for _ in range(5)] == [based.step().loss for _ in range(5)]


def logit_change(width: int, base_width: int) -> float:
    """Root mean square of how much 5 steps move the logits, after the first (whose gradient sees random output weights)."""
    run = Trainer(new_model(at_width(width, base_width), seed=1), replace(LOOP, learning_rate=1e-2, warmup_fraction=0.0, precision="fp32"), sequences())
    tokens, ids = sequences(8, seed=5).batch(range(8))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return run.model(tokens, document_ids_BT=ids).logits_BTV

    before = logits()
    for _ in range(5):
        run.step()
    return float((logits() - before).square().mean().sqrt())


def test_what_five_steps_change_does_not_grow_with_the_width_when_it_is_told_a_base_width() -> None:
    """The coordinate check of Yang et al. 2022, appendix D.1."""
    grows, stays = (logit_change(256, base) / logit_change(32, base) for base in (0, 32))
    assert grows > 2.0
    assert 0.6 < stays < 1.5


def test_a_base_width_needs_weights_drawn_by_width() -> None:
    with pytest.raises(ValueError, match="needs init='by_width'"):
        replace(MODEL, base_width=32)
    with pytest.raises(ValueError, match="must not be negative"):
        replace(BY_WIDTH, base_width=-1)


def test_initial_weights_of_outputs_shrink_with_the_width() -> None:
    narrow, wide = (new_model(at_width(width, 32), seed=1).state_dict() for width in (32, 128))
    for name, ratio in (("lm_head.weight", 4.0), ("transformer.blocks.0.ffn.router.layer.weight", 4.0), ("transformer.blocks.0.ffn.experts.mlp.w1", 2.0)):
        assert float(narrow[name].std() / wide[name].std()) == pytest.approx(ratio, rel=0.15), name
