"""Micro-batches and activation checkpointing change how a step is computed, not what; so do old checkpoints and other settings on resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import LOOP, MODEL, sequences

from models import checkpoint
from models.config import ModelConfig
from models.loop_config import LoopConfig
from models.moe import MoE
from models.packed_sequences import PackedSequences
from models.train_loop import Trainer, new_model

pytestmark = pytest.mark.usefixtures("one_thread")


def unevenly_padded(n: int = 12) -> PackedSequences:
    whole = sequences(n)
    return PackedSequences(whole.tokens, whole.boundaries, np.array([(7 * i) % 30 + 2 if i % 4 else 0 for i in range(n)]))


def exact_trainer(micro_batch_sequences: int, **changes: float) -> Trainer:
    model = new_model(replace(MODEL, **changes), seed=1, experts_backend="reference").double()
    return Trainer(model, replace(LOOP, precision="fp32", batch_sequences=6, micro_batch_sequences=micro_batch_sequences), unevenly_padded())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up_to_the_whole_batch(size: int) -> None:
    """In float64; sequences of very different lengths, one of padding only, and a last micro-batch that is smaller."""
    whole, parts = (exact_trainer(s, moe_loss_weight=0.0, router_z_loss_weight=0.1) for s in (0, size))
    for _ in range(4):
        one, many = whole.step(), parts.step()
        for name in ("loss", "grad_norm", "router_z", "router_confidence"):
            assert getattr(many, name) == pytest.approx(getattr(one, name), rel=1e-12)
        assert (many.tokens_per_expert, many.tokens) == (one.tokens_per_expert, one.tokens)
    theirs = parts.model.state_dict()
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-7)


def test_the_load_balancing_loss_of_micro_batches_is_their_mean_by_tokens() -> None:
    run = exact_trainer(2)
    tokens, ids = run.data.batch(run.order.batch(0))
    with torch.no_grad():
        each = [(float(run.model.forward_loss(tokens[i : i + 2], ids[i : i + 2]).load_balancing_loss), int((ids[i : i + 2] >= 0).sum())) for i in (0, 2, 4)]
    expected = sum(loss * n for loss, n in each) / sum(n for _, n in each)
    assert run.step().load_balancing_loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_sequences": 3, "balance_bias_rate": 0.01}, {"precision": "fp32"}])
def test_recomputed_blocks_train_to_the_same_bits(changes: dict) -> None:
    loop = replace(LOOP, **changes)
    config = replace(MODEL, router_z_loss_weight=0.01)
    plain, recomputing = (Trainer(new_model(config, seed=1), replace(loop, activation_checkpointing=flag), unevenly_padded()) for flag in (False, True))
    for _ in range(5):
        one, other = plain.step(), recomputing.step()
        for name in ("loss", "load_balancing_loss", "router_z", "grad_norm", "tokens_per_expert", "expert_load_entropy", "router_confidence"):
            assert getattr(one, name) == getattr(other, name), name
    theirs = recomputing.model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in plain.model.state_dict().items())


def test_blocks_are_recomputed_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = Trainer(new_model(MODEL, seed=1), replace(LOOP, activation_checkpointing=True), sequences()), []
    forward = MoE.forward
    monkeypatch.setattr(MoE, "forward", lambda layer, *args: calls.append(1) or forward(layer, *args))
    run.step()
    assert len(calls) == 2 * MODEL.n_layers
    calls.clear()
    run.held_out_loss(sequences(4), 4)
    assert len(calls) == MODEL.n_layers


def test_the_z_loss_counts_with_its_weight_and_keeps_logits_small() -> None:
    tokens, ids = sequences().batch([0, 1, 2])
    plain, weighted = (new_model(replace(MODEL, init="by_width", router_z_loss_weight=w), seed=1) for w in (0.0, 0.5))
    one, other = (model.forward_loss(tokens, ids) for model in (plain, weighted))
    assert float(one.router_z) == float(other.router_z.detach()) > 0
    assert float(other.loss.detach()) == pytest.approx(float(one.loss.detach()) + 0.5 * float(one.router_z), rel=1e-6)
    last = {}
    for weight in (0.0, 0.5):
        run = Trainer(new_model(replace(MODEL, init="by_width", router_z_loss_weight=weight), seed=1), replace(LOOP, learning_rate=1e-2), sequences())
        last[weight] = [run.step().router_z for _ in range(12)][-1]
    assert last[0.5] < 0.5 * last[0.0]
    with pytest.raises(ValueError, match="router_z_loss_weight"):
        replace(MODEL, router_z_loss_weight=-1.0)


def saved(folder: Path) -> tuple[Trainer, Path]:
    run = Trainer(new_model(MODEL, seed=1), LOOP, sequences())
    run.step()
    return run, run.save(folder).path


def test_a_checkpoint_from_before_a_setting_existed_resumes(tmp_path: Path) -> None:
    """It trained as the setting's default does."""
    straight, path = saved(tmp_path / "new")
    tensors, state = checkpoint.read(path)
    old_loop = {"steps", "batch_sequences", "learning_rate", "warmup_fraction", "decay_fraction", "weight_decay", "grad_clip", "seed", "precision"}
    state["loop"] = {name: value for name, value in state["loop"].items() if name in old_loop}
    del state["model"]["router_z_loss_weight"]
    path, _ = checkpoint.write(tmp_path / "old", step=1, tensors=tensors, state=state)
    resumed = Trainer(new_model(MODEL, seed=2), LOOP, sequences())
    resumed.load(path)
    assert resumed.step().loss == straight.step().loss
    with pytest.raises(ValueError, match="schedule"):
        Trainer(new_model(MODEL, seed=2), replace(LOOP, schedule="cosine"), sequences()).load(path)


def test_a_resumed_run_may_use_less_memory(tmp_path: Path) -> None:
    straight, path = saved(tmp_path)
    resumed = Trainer(new_model(MODEL, seed=2), replace(LOOP, activation_checkpointing=True, micro_batch_sequences=1), sequences())
    resumed.load(path)
    assert resumed.step().loss == pytest.approx(straight.step().loss, rel=1e-3)


def test_cosine_falls_from_the_peak_to_a_tenth_along_a_half_wave() -> None:
    loop = LoopConfig(steps=101, batch_sequences=1, learning_rate=1.0, warmup_fraction=0.0, schedule="cosine")
    rates = [loop.learning_rate_at(step) for step in range(101)]
    assert (rates[0], rates[50], rates[100]) == pytest.approx((1.0, 0.55, 0.1))
    assert rates[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 0.5**0.5))
    warmed = replace(loop, warmup_fraction=0.1)
    assert [warmed.learning_rate_at(step) for step in (0, 4, 9, 100)] == pytest.approx([0.1, 0.5, 1.0, 0.1])
    assert LoopConfig(steps=1, batch_sequences=1, learning_rate=1.0, schedule="cosine", warmup_fraction=0.0).learning_rate_at(0) == 1.0
    with pytest.raises(ValueError, match="wsd, cosine"):
        replace(loop, schedule="linear")


def test_the_same_model_config_in_a_dataclass_of_older_fields_hashes_the_same() -> None:
    from jobs.contract import canonical

    assert "router_z_loss_weight" not in canonical(MODEL)
    assert canonical(replace(MODEL, router_z_loss_weight=0.1))["router_z_loss_weight"] == 0.1
    assert ModelConfig(**canonical(MODEL)) == MODEL


def test_compiling_without_a_compiler_says_what_to_install() -> None:
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ValueError, match="install g\\+\\+"):
        Trainer(new_model(MODEL, seed=1), replace(LOOP, compile=True), sequences())


def test_compiled_blocks_train_to_the_same_losses_and_evaluate_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch's code generator, which takes half a minute: what it is given is traced and differentiated here."""
    plainly = torch.compile
    monkeypatch.setattr(torch, "compile", lambda body: plainly(body, backend="aot_eager"))
    config = replace(MODEL, router_z_loss_weight=0.01)
    plain, compiled = (Trainer(new_model(config, seed=1), replace(LOOP, precision="fp32", compile=flag), unevenly_padded()) for flag in (False, True))
    for _ in range(3):
        one, other = plain.step(), compiled.step()
        assert (other.loss, other.router_z) == pytest.approx((one.loss, one.router_z), rel=1e-4)
        assert other.tokens_per_expert == one.tokens_per_expert
    assert set(compiled.model.state_dict()) == set(plain.model.state_dict())
    monkeypatch.setattr(compiled.model.transformer.blocks[0], "compiled", None)
    monkeypatch.setattr(compiled.model.transformer.blocks[1], "compiled", lambda *_: pytest.fail("evaluation ran a compiled block"))
    compiled.held_out_loss(sequences(2), 2)
