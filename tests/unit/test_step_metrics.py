"""What a step reports: expert load, the heat map's interval, one read from the device."""

import math

import numpy as np
import pytest
import torch
from small_training import LOOP, MODEL, sequences, trainer

from models import step_metrics
from models.step_metrics import ExpertLoad, heat_map_step
from models.train_loop import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_load_of_balanced_collapsed_and_uneven_layers() -> None:
    load = ExpertLoad.of(np.array([[5.0, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0]]))
    assert load.smallest == (1.0, 0.0, 0.0)
    assert load.largest == (1.0, 4.0, 2.0)
    assert load.entropy == pytest.approx((1.0, 0.0, 0.5))
    assert load.starved == (0, 3, 2)
    assert load.counts() == ((5, 5, 5, 5), (20, 0, 0, 0), (10, 10, 0, 0))


def test_load_without_tokens_and_of_one_expert_is_finite() -> None:
    assert ExpertLoad.of(np.zeros((1, 4))).entropy == (0.0,) and ExpertLoad.of(np.zeros((1, 4))).starved == (4,)
    assert ExpertLoad.of(np.array([[7.0]])).entropy == (1.0,)


@pytest.mark.parametrize("steps", [1, 7, 200, 399, 1000, 12_345])
def test_a_heat_map_has_its_first_and_last_step_and_about_two_hundred_columns(steps: int) -> None:
    columns = [step for step in range(1, steps + 1) if heat_map_step(step, steps)]
    assert columns[0] == 1 and columns[-1] == steps
    assert len(columns) == len(set(columns)) <= 401
    assert len(columns) >= min(steps, 200)


def test_a_step_reports_what_its_routers_did() -> None:
    run: Trainer = trainer()
    metrics = run.step()
    counted = 4 * 29 * MODEL.top_k  # sequences x tokens that are not padding x experts per token
    assert [sum(layer) for layer in metrics.tokens_per_expert] == [counted] * MODEL.n_layers
    for layer, counts in enumerate(np.array(metrics.tokens_per_expert, dtype=float)):
        share = counts / counts.sum()
        assert metrics.expert_load_max[layer] == pytest.approx(counts.max() / counts.mean())
        assert metrics.expert_load_min[layer] == pytest.approx(counts.min() / counts.mean())
        assert metrics.starved_experts[layer] == (counts == 0).sum()
        assert metrics.expert_load_entropy[layer] == pytest.approx(-sum(s * math.log(s) for s in share if s) / math.log(16))
    assert metrics.expert_load_max_over_mean == max(metrics.expert_load_max)
    assert metrics.flops == MODEL.flops_per_token * 4 * 32
    assert metrics.peak_memory_bytes > 10**7


def test_router_confidence_and_z_are_those_of_the_layers_scores() -> None:
    run = trainer()
    tokens, ids = sequences().batch(run.order.batch(0))
    router = run.model(tokens, document_ids_BT=ids).router
    with torch.no_grad():
        output = run.model.forward_loss(tokens, ids)
    assert output.router_confidence.item() == pytest.approx(np.mean([s.scores_NE.amax(1).mean().item() for s in router]), rel=1e-5)
    assert output.router_z.item() == pytest.approx(np.mean([torch.logsumexp(s.logits_NE, 1).square().mean().item() for s in router]), rel=1e-5)


def test_all_metrics_of_a_step_are_fetched_from_the_device_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU every number fetched makes the host wait."""
    run, fetched = trainer(), []
    plain = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: fetched.append(tensor.numel()) or plain(tensor))
    for name in ("item", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, name=name: pytest.fail(f"{name} waits for the device"))
    run.step()
    fetched = [n for n in fetched if n != MODEL.n_experts]  # a CPU's experts read their counts (experts_cpu.py), on a GPU nothing does
    assert fetched == [len(step_metrics.SCALARS) + MODEL.n_layers * MODEL.n_experts + 1]
    assert run.step_number == 1 and LOOP.steps == 12
