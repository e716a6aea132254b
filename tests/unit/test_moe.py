"""Routing and the balancing losses: known values, scale, and what they push towards."""

import pytest
import torch

from models.config import ModelConfig
from models.moe import MoE, count_tokens, load_balancing_loss, mean_confidence, route, router_z

CONFIG = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, n_layers=1, ffn_hidden=24, vocab_size=32, max_seq_len=16)


def loss_of(logits_per_layer: list[torch.Tensor], top_k: int, weight: float) -> torch.Tensor:
    routed = [route(logits, top_k) for logits in logits_per_layer]
    counts = [count_tokens(indices, logits.shape[1]) for (_, _, indices), logits in zip(routed, logits_per_layer, strict=True)]
    return load_balancing_loss(scores_per_layer=[r[0] for r in routed], tokens_per_expert_per_layer=counts, top_k=top_k, weight=weight)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_load_balancing_loss_equals_its_weight_at_perfect_balance(n_layers: int) -> None:
    scores, counts = torch.full((64, 16), 1 / 16), torch.full((16,), 16)  # 64 tokens x 4 choices over 16 experts
    loss = load_balancing_loss(scores_per_layer=[scores] * n_layers, tokens_per_expert_per_layer=[counts] * n_layers, top_k=4, weight=0.05)
    assert loss.item() == pytest.approx(0.05, rel=1e-6)


def test_load_balancing_loss_of_total_collapse_is_experts_over_top_k_times_the_weight() -> None:
    logits = torch.zeros(32, 16)
    logits[:, :4] = 100.0
    assert loss_of([logits], 4, 0.05).item() == pytest.approx(0.05 * 16 / 4, rel=1e-5)


def test_load_balancing_loss_equals_the_formula_summed_in_float64() -> None:
    torch.manual_seed(0)
    layers, weight, k = [torch.randn(50, 8) for _ in range(2)], 0.1, 3
    expected = 0.0
    for logits in layers:
        scores = torch.softmax(logits.double(), -1)
        chosen = scores.topk(k, -1).indices
        expected += sum(float((chosen == e).sum()) * float(scores[:, e].mean()) for e in range(8))
    expected *= weight * 8 / (2 * 50 * k)
    assert loss_of(layers, k, weight).item() == pytest.approx(expected, rel=1e-5)


def test_descending_the_load_balancing_loss_balances_the_experts() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    w = (torch.randn(8, 16) + torch.linspace(-3, 3, 16)).requires_grad_()
    bias = torch.linspace(-2, 2, 16).requires_grad_()

    def busiest() -> float:
        return float(count_tokens(route(x @ w + bias, 4)[2], 16).max()) / (256 * 4 / 16)

    before, optimizer = busiest(), torch.optim.Adam([w, bias], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss_of([x @ w + bias], 4, 1.0).backward()
        optimizer.step()
    assert before > 2.0 and busiest() < 1.5


def test_load_balancing_loss_is_not_rounded_by_autocast() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 16)
    exact = loss_of([logits], 4, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of([logits], 4, 0.05).item() == exact.item()


def test_load_balancing_loss_of_no_tokens_is_zero() -> None:
    assert load_balancing_loss(scores_per_layer=[torch.zeros(0, 4)], tokens_per_expert_per_layer=[torch.zeros(4)], top_k=2, weight=1.0).item() == 0.0


def test_z_loss_of_uniform_logits_is_the_squared_log_of_the_expert_count() -> None:
    assert router_z([torch.zeros(5, 16)]).item() == pytest.approx(2.772588722**2, rel=1e-6)
    assert router_z([torch.zeros(0, 16)]).item() == 0.0


def test_router_confidence_is_the_mean_of_the_best_scores_over_tokens_and_layers() -> None:
    first, second = torch.tensor([[0.7, 0.3], [0.5, 0.5]]), torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    assert mean_confidence([first, second]).item() == pytest.approx((0.7 + 0.5 + 0.9 + 0.8) / 4)
    assert mean_confidence([torch.zeros(0, 2)]).item() == 0.0


def test_gates_are_the_top_scores_divided_by_their_sum() -> None:
    scores, gates, indices = route(torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]])), 2)
    assert indices.tolist() == [[1, 3]]
    torch.testing.assert_close(gates, torch.tensor([[4 / 7, 3 / 7]]))
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_router_softmax_is_float32_even_in_bf16(autocast: bool) -> None:
    torch.manual_seed(0)
    layer = MoE(CONFIG, "grouped_mm")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 16)
    expected = torch.softmax(x.flatten(0, 1).double() @ layer.router.layer.weight.double().T, -1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, stats = layer(x)
    assert stats.scores_NE.dtype == torch.float32
    torch.testing.assert_close(stats.scores_NE.double(), expected, rtol=0, atol=1e-6)
    assert route(torch.randn(3, 16, dtype=torch.bfloat16), 4)[0].dtype == torch.float32


def test_statistics_leave_out_what_is_not_counted() -> None:
    torch.manual_seed(0)
    layer = MoE(CONFIG, "reference")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 6, 16)
    out, every = layer(x)
    same, some = layer(x, torch.tensor([0, 2]))
    torch.testing.assert_close(out, same)
    assert every.tokens_per_expert_E.sum() == 24 and some.tokens_per_expert_E.sum() == 8
    torch.testing.assert_close(some.scores_NE, every.scores_NE[[0, 2]])


def test_unknown_backend_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match="Unknown experts_backend"):
        MoE(CONFIG, "sparse")
