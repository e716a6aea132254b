"""Scores follow Foundry's rules, and speed changes none of them: order, batch size and shared prefixes are checked against the plain way."""

from __future__ import annotations

import math
import random

import pytest
import torch
from gauntlet_examples import documents, encoder, model, scorer

from models.gauntlet import own_data, suite, symbolic
from models.gauntlet.prompts import assemble
from models.gauntlet.scoring import ContinuationScore, Scorer, _respond, score
from models.gauntlet.tasks import Benchmark, Item, Task


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small only lose by being shared out, and lose a lot where other work runs beside the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def own_benchmark(n: int) -> Benchmark:
    made = own_data.make_items(documents()[:40], task="next_line", seed=1)
    return Benchmark(suite.task("next_line"), tuple(Item(i.item_id, i.row) for i in made[:n]))


def one_by_one(benchmark: Benchmark) -> list[list[float]]:
    """Log-probabilities in the most direct way: one forward pass per option, softmax over everything, no padding, no cache."""
    return [[logprob_of(*pair) for pair in zip(r.contexts, r.continuations, strict=True)] for r in assemble(benchmark, encoder(), 256)]


def logprob_of(context, continuation) -> float:
    with torch.inference_mode():
        logprobs = model()(torch.tensor([[*context, *continuation]])).logits_BTV[0].double().log_softmax(-1)
    return sum(logprobs[len(context) - 1 + i, token].item() for i, token in enumerate(continuation))


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_log_probabilities_are_those_of_one_forward_pass_per_option(shared_prefix):
    benchmark = own_benchmark(8)
    expected = one_by_one(benchmark)
    got = score(benchmark, scorer(shared_prefix=shared_prefix))
    for response, sums in zip(got, expected, strict=True):
        assert response.sum_logprobs == pytest.approx(sums, abs=2e-4)
        lengths = [len(encoder().encode(c, False)) for c in response.choices]
        alone = [logprob_of(encoder().encode("\n", False), encoder().encode(c, False)) for c in response.choices]
        assert response.mean_logprobs == pytest.approx([(s - prior) / n for s, prior, n in zip(sums, alone, lengths, strict=True)], abs=2e-5)
        assert response.prediction == max(range(4), key=lambda i: response.mean_logprobs[i]) and response.output == response.choices[response.prediction]
    assert len({r.prediction for r in got}) > 1


def test_the_order_of_the_items_changes_no_bit():
    benchmark = own_benchmark(16)
    mixed = list(benchmark.items)
    random.Random(3).shuffle(mixed)
    straight = {r.item_id: r for r in score(benchmark, scorer(batch_tokens=900))}
    shuffled = {r.item_id: r for r in score(Benchmark(benchmark.task, tuple(mixed)), scorer(batch_tokens=900))}
    assert straight == shuffled  # floats compared exactly


def test_the_batch_size_changes_no_answer_and_sixth_decimals_only():
    benchmark = own_benchmark(16)
    by_size = [score(benchmark, scorer(batch_tokens=size)) for size in (1, 900, 100_000)]
    for other in by_size[1:]:
        for a, b in zip(by_size[0], other, strict=True):
            assert a.prediction == b.prediction and a.sum_logprobs == pytest.approx(b.sum_logprobs, abs=1e-4)


def test_language_modeling_is_right_only_when_every_token_is_the_argmax():
    task = Task(label="copy", kind="language_modeling", category="c", continuation_delimiter="", prefix_space=False, strip_dataset=False)
    context = documents()[0][2][:200].rstrip()
    greedy = scorer().generate([tuple(encoder().encode(context, False))], 4, ())[0]
    ids = encoder().encode(greedy, False)
    rows = (
        {"context": context, "continuation": greedy},
        {"context": context, "continuation": greedy + " zebra"},
        {"context": context, "continuation": "zebra"},
    )
    got = score(Benchmark(task, tuple(Item(str(i), row) for i, row in enumerate(rows))), scorer())
    assert [r.correct for r in got[1:]] == [False, False] and [r.prediction for r in got[1:]] == [-1, -1]
    tokens = encoder().encode(context, False)
    with torch.inference_mode():
        argmax = [model()(torch.tensor([[*tokens, *ids[:i]]])).logits_BTV[0, -1].argmax().item() for i in range(len(ids))]
    assert got[0].correct is (argmax == ids) and got[0].output == encoder().decode(argmax)


def test_greedy_generation_is_the_same_with_and_without_a_cache_and_stops():
    contexts = [tuple(encoder().encode(text[:n], False)) for (_, _, text), n in zip(documents()[:5], (40, 90, 200, 11, 90), strict=True)]
    cached = scorer().generate(contexts, 8, ())
    assert cached == scorer(shared_prefix=False, batch_tokens=50).generate(contexts, 8, ())
    stop = cached[0][:3]
    stopped = scorer().generate(contexts[:1], 8, (stop,))[0]
    assert stop and stopped.startswith(stop) and len(stopped) < len(cached[0])


def test_ties_go_to_the_lowest_index():
    request = next(assemble(own_benchmark(1), encoder(), 256))
    same = {pair: ContinuationScore(-3.0 * len(pair[1]), len(pair[1]), pair[1], -3.0) for pair in zip(request.contexts, request.continuations, strict=True)}
    assert _respond(request, same, encoder()).prediction == 0


def test_options_are_compared_per_token_not_by_their_sum():
    request = next(assemble(own_benchmark(1), encoder(), 256))
    pairs = list(zip(request.contexts, request.continuations, strict=True))
    scores = {pair: ContinuationScore(-2.0, 1, (0,), -1.0) for pair in pairs[:-1]} | {pairs[-1]: ContinuationScore(-6.0, 6, (0,) * 6, -1.0)}
    response = _respond(request, scores, encoder())
    assert response.prediction == len(pairs) - 1 and response.mean_logprobs[-1] == -1.0 and response.sum_logprobs[-1] == -6.0


def test_broken_weights_are_an_error_that_names_the_item():
    import copy

    broken = copy.deepcopy(model())
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    benchmark = own_benchmark(3)
    with pytest.raises(ValueError, match=r"Item \S+: a log-probability is .*nan"):
        score(benchmark, Scorer(broken, encoder(), max_seq_len=256))


def test_a_model_that_knows_the_answers_scores_one_and_its_opposite_zero():
    """The whole path with a model whose answers are known: it prefers exactly one token."""

    class Prefers(torch.nn.Module):
        def __init__(self, token: int):
            super().__init__()
            self.lm_head = torch.nn.Linear(1, 1024, bias=False)
            with torch.no_grad():
                self.lm_head.weight.zero_()
                self.lm_head.weight[token] = 5.0

        def hidden(self, tokens):
            return torch.ones(*tokens.shape, 1)

    task = Task(label="t", kind="multiple_choice", category="c", prefix_space=False)
    benchmark = Benchmark(task, tuple(Item(str(i), {"query": f"{i}?", "choices": ["x", "y"], "gold": i % 2}) for i in range(10)))
    x, y = encoder().encode("x", False)[0], encoder().encode("y", False)[0]
    assert [r.correct for r in score(benchmark, Scorer(Prefers(x), encoder(), max_seq_len=64))] == [i % 2 == 0 for i in range(10)]
    assert [r.correct for r in score(benchmark, Scorer(Prefers(y), encoder(), max_seq_len=64))] == [i % 2 == 1 for i in range(10)]


def test_short_answers_share_a_prefix_with_long_ones():
    """One-token and many-token continuations of the same context in one batch."""
    items = symbolic.make_items("arithmetic", n=8, seed=3)
    benchmark = Benchmark(suite.task("arithmetic"), tuple(items))
    expected = one_by_one(benchmark)
    assert [r.sum_logprobs for r in score(benchmark, scorer())] == [pytest.approx(sums, abs=2e-4) for sums in expected]
