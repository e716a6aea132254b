"""Experts trained on a CPU one after the other: the loop's values and gradients, weights in another type than activations, no tokens at all."""

import pytest
import torch

from models.experts import ExpertWeights, _reference, expert_forward
from models.experts_cpu import train_experts
from models.moe import count_tokens, route

E, D, F, K = 16, 32, 48, 4


def layer(n: int, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Leaves (weights in float32) and indices: every fourth expert gets no token."""
    torch.manual_seed(1)
    logits = torch.randn(n, E)
    logits[:, ::4] -= 1e4
    _, gates, indices = route(logits, K)
    weights = {name: torch.randn(E * F, D) * 0.2 for name in ("w1", "v1", "w2")}
    return {name: t.requires_grad_() for name, t in {"x": torch.randn(n, D).to(dtype), "gates": gates.to(dtype), **weights}.items()}, indices


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("n", [200, 1, 0])
def test_values_and_gradients_are_those_of_the_loop_in_float64(n: int, dtype: torch.dtype, tolerance: float) -> None:
    leaves, indices = layer(n, dtype)
    way = torch.randn(n, D)
    out = train_experts(*leaves.values(), indices, count_tokens(indices, E))
    grads = torch.autograd.grad((out * way).sum(), list(leaves.values()))
    exact = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    expected = _reference(exact["x"], ExpertWeights(exact["w1"], exact["v1"], exact["w2"], E), indices, exact["gates"], count_tokens(indices, E))
    expected_grads = torch.autograd.grad((expected * way).sum(), list(exact.values()))
    assert out.dtype == dtype and out.shape == (n, D)
    for name, got, right in zip(("out", *leaves), (out, *grads), (expected, *expected_grads), strict=True):
        scale = float(right.abs().max().detach()) if right.numel() else 0.0
        torch.testing.assert_close(got.double(), right, rtol=0, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}")
    for grad in grads[2:]:
        assert grad.dtype == torch.float32 and not grad.view(E, F, D)[::4].any()  # nothing uninitialised where nobody came


def test_training_and_inference_give_the_same_outputs() -> None:
    leaves, indices = layer(300, torch.float32)
    x, gates = leaves.pop("x"), leaves.pop("gates")
    chosen = {"indices_NK": indices, "gates_NK": gates, "tokens_per_expert_E": count_tokens(indices, E)}
    trained = expert_forward("grouped_mm", x, ExpertWeights(**leaves, n_experts=E), **chosen)
    assert "Experts" in type(trained.grad_fn).__name__
    with torch.no_grad():
        inferred = expert_forward("grouped_mm", x, ExpertWeights(**leaves, n_experts=E), **chosen)
    torch.testing.assert_close(trained, inferred, rtol=0, atol=1e-5)


def test_the_same_step_twice_is_the_same_to_the_bit() -> None:
    results = []
    for _ in range(2):
        leaves, indices = layer(200, torch.bfloat16)
        out = train_experts(*leaves.values(), indices, count_tokens(indices, E))
        results.append((out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
