"""The expert kernels agree with the readable loop, forward and backward, whatever the load."""

import pytest
import torch

from models.experts import ExpertWeights, _reference, expert_forward
from models.moe import count_tokens, route

E, D, F, K = 16, 32, 48, 4


def routing(case: str, n: int) -> torch.Tensor:
    """Router logits (n, E) of one kind of load."""
    logits = torch.randn(n, E)
    if case == "starved":  # experts 0, 7 and 15 get nothing
        logits[:, [0, 7, 15]] -= 1e4
    if case == "four_experts":  # every token on the same four
        logits[:, 4:] -= 1e4
    return logits


def run(backend: str, dtype: torch.dtype, logits: torch.Tensor, n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    leaves = {"x": torch.randn(n, D), "logits": logits.clone(), **{name: torch.randn(E * F, D) * 0.2 for name in ("w1", "v1", "w2")}}
    leaves = {name: t.to(torch.float32 if name == "logits" else dtype).requires_grad_() for name, t in leaves.items()}
    _, gates, indices = route(leaves["logits"], K)
    weights = ExpertWeights(leaves["w1"], leaves["v1"], leaves["w2"], E)
    out = expert_forward(backend, leaves["x"], weights, indices_NK=indices, gates_NK=gates, tokens_per_expert_E=count_tokens(indices, E))
    (out.float() * torch.randn(n, D)).sum().backward()
    return out.detach(), {name: t.grad for name, t in leaves.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("case", "n"), [("spread", 200), ("starved", 200), ("four_experts", 64), ("spread", 1)])
def test_grouped_mm_equals_the_loop_forward_and_backward(case: str, n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits = routing(case, n)
    expected, expected_grads = run("reference", dtype, logits, n)
    out, grads = run("grouped_mm", dtype, logits, n)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert out.dtype == dtype and out.abs().max() > 0.1
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    for name, grad in expected_grads.items():
        assert torch.isfinite(grads[name]).all()
        torch.testing.assert_close(grads[name], grad, rtol=0, atol=tolerance * float(grad.abs().max()), msg=lambda m, name=name: f"gradient of {name}: {m}")


@pytest.mark.parametrize("backend", ["reference", "grouped_mm"])
def test_a_starved_expert_gets_a_zero_gradient(backend: str) -> None:
    torch.manual_seed(1)
    _, grads = run(backend, torch.float32, routing("four_experts", 40), 40)
    by_expert = grads["w1"].view(E, F, D).abs().amax((1, 2))
    assert (by_expert[:4] > 0).all() and (by_expert[4:] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "grouped_mm", "megablocks"])
def test_one_expert_is_a_dense_layer_on_every_backend(backend: str) -> None:
    torch.manual_seed(1)
    x, (w1, v1, w2) = torch.randn(30, D, requires_grad=True), (torch.randn(F, D, requires_grad=True) for _ in range(3))
    _, gates, indices = route(torch.randn(30, 1), 1)
    counts, way = count_tokens(indices, 1), torch.randn(30, D)
    out = expert_forward(backend, x, ExpertWeights(w1, v1, w2, 1), indices_NK=indices, gates_NK=gates, tokens_per_expert_E=counts)
    grads = torch.autograd.grad((out * way).sum(), (x, w1, v1, w2))
    expected = _reference(x, ExpertWeights(w1, v1, w2, 1), indices, gates, counts)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grads, torch.autograd.grad((expected * way).sum(), (x, w1, v1, w2)))


def test_no_token_is_dropped_when_all_choose_the_same_experts() -> None:
    torch.manual_seed(1)
    out, _ = run("grouped_mm", torch.float32, routing("four_experts", 64), 64)
    assert (out.abs().amax(1) > 0).all()


def test_one_expert_of_the_formula_by_hand() -> None:
    x, w1, v1, w2 = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0, 4.0]])
    one = torch.zeros(1, 1, dtype=torch.int64)
    weights = ExpertWeights(w1, v1, w2, 1)
    out = expert_forward("reference", x, weights, indices_NK=one, gates_NK=torch.ones(1, 1), tokens_per_expert_E=torch.tensor([1]))
    silu_of_1 = 0.7310585786300049  # 1 / (1 + e^-1)
    torch.testing.assert_close(out, torch.tensor([[3.0, 4.0]]) * silu_of_1 * -1.0)


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="reference, grouped_mm, megablocks"):
        run("tutel", torch.float32, torch.randn(2, E), 2)


def test_missing_megablocks_says_how_to_install_it() -> None:
    try:
        import megablocks  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"build_megablocks\.py.*megablocks\[gg\]"):
            run("megablocks", torch.float32, torch.randn(2, E), 2)
    else:
        pytest.skip("megablocks is installed here")


def test_float64_is_refused_by_grouped_mm_with_the_backend_to_choose() -> None:
    with pytest.raises(ValueError, match="reference"):
        run("grouped_mm", torch.float64, torch.randn(2, E), 2)
