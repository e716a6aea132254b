"""An answer is a function of its prompt: not of the batch size, the order, the neighbours, the padding or the threads. Floats are compared exactly."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from gauntlet_examples import GAUNTLET, encoder, model, needs_gauntlet, scorer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.gauntlet import tasks
from models.gauntlet.prefix_tree import Edge, positions_of, prefix_tree
from models.gauntlet.scoring import score
from models.gauntlet.tasks import Benchmark
from models.kv_cache import attend_by_position

SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
TOKENS = st.integers(2, 9)  # few different ones, so that beginnings coincide
PAIRS = st.tuples(st.lists(TOKENS, min_size=1, max_size=40), st.lists(TOKENS, min_size=1, max_size=6)).map(lambda p: (tuple(p[0]), tuple(p[1])))


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def long_beginnings(pairs, rng):
    """The pairs after one of three long beginnings, or of none."""
    beginnings = [(), *(tuple(rng.choices(range(2, 1000), k=n)) for n in (50, 120, 190))]
    return [((*rng.choice(beginnings), *context), continuation) for context, continuation in pairs]


@settings(max_examples=20, **SLOW)
@given(st.lists(PAIRS, min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_batch_size_order_and_neighbours_change_no_bit(pairs, rng):
    pairs = long_beginnings(pairs, rng)
    expected = scorer(batch_tokens=16_384).continuation_scores(pairs)
    assert set(expected) == set(pairs)
    rng.shuffle(pairs)
    for size in (1, 1_000, 4_000):
        assert scorer(batch_tokens=size).continuation_scores(pairs) == expected
    some = pairs[: len(pairs) // 2 + 1]
    assert scorer().continuation_scores(some) == {pair: expected[pair] for pair in some}
    assert scorer().continuation_scores(pairs[:1]) == {pairs[0]: expected[pairs[0]]}


@settings(max_examples=15, **SLOW)
@given(st.lists(PAIRS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_scores_are_those_of_one_plain_pass_per_text(pairs, rng):
    pairs = long_beginnings(pairs, rng)
    for shared_prefix in (True, False):
        found = scorer(shared_prefix=shared_prefix).continuation_scores(pairs)
        for context, continuation in set(pairs):
            with torch.inference_mode():
                logits = model()(torch.tensor([[*context, *continuation]])).logits_BTV[0, len(context) - 1 : -1].double()
            logprobs = logits.log_softmax(-1)[range(len(continuation)), list(continuation)]
            got = found[context, continuation]
            assert got.n_tokens == len(continuation) and got.sum_logprob == pytest.approx(logprobs.sum().item(), abs=2e-4)
            assert got.least_logprob == pytest.approx(logits.log_softmax(-1).amax(-1).min().item(), abs=2e-4)
            margin = logits.topk(2).values
            sure = margin[:, 0] - margin[:, 1] > 1e-3
            assert [t for t, s in zip(got.greedy, sure, strict=True) if s] == logits.argmax(-1)[sure].tolist()


def test_one_text_asked_from_several_places_gives_each_answer_its_own_tokens():
    """Long continuations that begin alike lie on one edge, and their states are wanted in no order."""
    rng = random.Random(4)
    shared = tuple(rng.choices(range(2, 1000), k=90))
    pairs = [(shared[:cut], (*shared[cut:], *rng.choices(range(2, 1000), k=3))) for cut in (1, 40, 70, 85, 89) for _ in range(3)]
    together = scorer().continuation_scores(pairs)
    for pair in pairs:
        with torch.inference_mode():
            logprobs = model()(torch.tensor([[*pair[0], *pair[1]]])).logits_BTV[0, len(pair[0]) - 1 : -1].double().log_softmax(-1)
        assert together[pair].sum_logprob == pytest.approx(logprobs[range(len(pair[1])), list(pair[1])].sum().item(), abs=1e-3)
        assert scorer().continuation_scores([pair]) == {pair: together[pair]}


@settings(max_examples=4, **SLOW)
@given(st.lists(st.lists(TOKENS, min_size=1, max_size=60).map(tuple), min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_generation_equals_the_naive_loop(contexts, rng):
    contexts = [context for context, _ in long_beginnings([(c, (2,)) for c in contexts], rng)]
    expected = [naive(context, 4) for context in contexts]
    clear = [k for k, (_, is_clear) in enumerate(expected) if is_clear]
    for size, shared_prefix in ((4096, True), (300, True), (1, True), (4096, False)):
        found = scorer(batch_tokens=size, shared_prefix=shared_prefix).generate(contexts, 4, ())
        assert [found[k] for k in clear] == [expected[k][0] for k in clear]


def naive(context, n) -> tuple[str, bool]:
    """The text, and whether every token led clearly: nearly equal ones may change places with the order of sums."""
    ids, clear = naive_ids(context, n)
    return encoder().decode(ids[: ids.index(encoder().eos_id)] if encoder().eos_id in ids else ids), clear


def naive_ids(context, n) -> tuple[list[int], bool]:
    """The ``n`` likeliest next tokens, one plain pass each, and whether all of them led clearly."""
    ids, clear = list(context), True
    for _ in range(n):
        with torch.inference_mode():
            logits = model()(torch.tensor([ids])).logits_BTV[0, -1]
        first, second = logits.topk(2).values.tolist()
        ids.append(logits.argmax().item())
        clear &= first - second > 1e-3
    return ids[len(context) :], clear


@pytest.mark.parametrize("batch_tokens", [1, 300, 4096])
def test_texts_that_end_at_different_steps_leave_the_others_as_they_are(batch_tokens):
    """The end-of-text token is one that these texts really reach: some at once, some later, some never."""
    rng = random.Random(3)
    contexts = [context for context, _ in long_beginnings([(tuple(rng.choices(range(2, 1000), k=rng.randint(1, 30))), (2,)) for _ in range(24)], rng)]
    found = {context: naive_ids(context, 8) for context in contexts}
    contexts = [context for context in contexts if found[context][1]]
    plain = [found[context][0] for context in contexts]
    steps = {token: {ids.index(token) if token in ids else 8 for ids in plain} for token in sorted({t for ids in plain for t in ids})}
    eos = max(steps, key=lambda token: len(steps[token]))
    assert len(steps[eos]) > 2 and 8 in steps[eos]
    answering = scorer(batch_tokens=batch_tokens)
    answering.encoder = replace(encoder(), eos_id=eos)
    assert answering.generate(contexts, 8, ()) == [encoder().decode(ids[: ids.index(eos)] if eos in ids else ids) for ids in plain]


@needs_gauntlet
@pytest.mark.parametrize("label", ["openbook_qa", "winograd", "simple_arithmetic_nospaces", "agi_eval_lsat_ar"])
def test_foundrys_items_alone_together_and_shuffled(label):
    (benchmark,) = tasks.load_foundry(
        GAUNTLET / "yamls" / "tasks_v0.3.yaml", GAUNTLET / "local_data", GAUNTLET / "yamls" / "eval_gauntlet_v0.3.yaml", only=[label]
    )
    benchmark = Benchmark(benchmark.task, benchmark.items[:20])
    ids = [item.item_id for item in benchmark.items]
    straight = score(benchmark, scorer(batch_tokens=16_384))
    assert straight == score(benchmark, scorer(batch_tokens=1_000))
    for some in (ids[3:4], random.Random(1).sample(ids, 7)):
        assert score(benchmark, scorer(), keep=set(some).__contains__) == [r for r in straight if r.item_id in some]


def test_the_number_of_threads_changes_no_bit():
    pairs = long_beginnings([((2, 3, n), (4, n % 7 + 2)) for n in range(2, 40)], random.Random(2))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(scorer().continuation_scores(pairs))
    assert found[0] == found[1]


@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_a_querys_attention_depends_on_no_other_query_row_or_later_key(head_dim):
    """The kernel alone, in the sizes of real models: cut into passes of 1 to 300 queries, beside other rows, with later keys of any value."""
    torch.manual_seed(head_dim)
    q, k, v = torch.randn(3, 4, 300, head_dim), torch.randn(3, 2, 1024, head_dim), torch.randn(3, 2, 1024, head_dim)
    positions = torch.stack([torch.arange(300) + start for start in (0, 200, 600)])
    expected = attend_by_position(q, k, v, positions)
    for size in (1, 2, 7, 8, 40, 256):
        parts = [attend_by_position(q[:, :, at : at + size], k, v, positions[:, at : at + size]) for at in range(0, 300, size)]
        assert torch.equal(torch.cat(parts, dim=2), expected), size
    for row in range(3):
        for at in (0, 5, 299):
            one = slice(row, row + 1), slice(None), slice(at, at + 1)
            assert torch.equal(attend_by_position(q[one], k[row : row + 1], v[row : row + 1], positions[row : row + 1, at : at + 1]), expected[one])
    later = (torch.arange(1024) > positions[:, -1:])[:, None, :, None]
    changed = [torch.where(later, 1e3, t) for t in (k, v)]
    assert torch.equal(attend_by_position(q, *changed, positions), expected)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=torch.arange(1024) <= positions[:, None, :, None]
    )
    assert torch.allclose(expected, plain, atol=1e-5)


SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=80).map(tuple), min_size=1, max_size=30, unique=True).map(sorted)


@given(SEQUENCES, st.booleans(), st.randoms(use_true_random=False))
def test_a_prefix_tree_holds_every_sequence_once(sequences, shared, rng):
    wanted_from = [rng.randrange(len(s)) for s in sequences]
    root = prefix_tree(sequences, wanted_from, shared=shared)
    seen: dict[int, list[int]] = {n: [] for n in range(len(sequences))}
    ended = []

    def below(edge: Edge, text: tuple[int, ...], level: int) -> None:
        assert edge.start == len(text) and level <= 8
        text = (*text, *edge.sequence[edge.start : edge.end].tolist())
        for position, number in edge.wanted:
            assert edge.start <= position < edge.end and text[: position + 1] == sequences[number][: position + 1]
            seen[number].append(position)
        for number in edge.ends:
            assert text[: len(sequences[number])] == sequences[number] and len(sequences[number]) > edge.start
            ended.append(number)
        for child in edge.children:
            below(child, text, level + 1)

    below(root, (), 0)
    assert sorted(ended) == list(range(len(sequences)))
    assert seen == {n: list(range(wanted_from[n], len(s))) for n, s in enumerate(sequences)}
    assert positions_of(root) <= sum(map(len, sequences))


def depth(edge: Edge) -> int:
    return 1 + max(map(depth, edge.children)) if edge.children else 0


@pytest.mark.parametrize(("texts", "levels"), [(5, 5), (8, 8), (30, 8)])
def test_a_tree_is_never_deeper_than_its_levels_however_often_texts_part(texts, levels):
    """Each text leaves the longest one 40 tokens later than the one before: every shared piece alone is worth a pass."""
    rng = random.Random(texts)
    longest = rng.choices(range(2, 1000), k=40 * texts)
    sequences = sorted((*longest[: 40 * n], 1000 + n) for n in range(1, texts + 1))
    root = prefix_tree(sequences, [0] * texts)
    assert depth(root) == levels
    ended = {n: (*edge.sequence[: edge.end],) for edge in edges_below(root) for n in edge.ends}
    assert {n: text[: len(sequences[n])] for n, text in ended.items()} == dict(enumerate(sequences))
    pairs = [(sequence[:-1], (sequence[-1] - 1000 + 2,)) for sequence in sequences if len(sequence) < 250]
    assert scorer(batch_tokens=1).continuation_scores(pairs) == scorer().continuation_scores(pairs)


def edges_below(edge: Edge) -> list[Edge]:
    return [edge, *(below for child in edge.children for below in edges_below(child))]


@pytest.mark.parametrize("window", [1, 2, 7, 127, 128, 129, 500])
def test_a_window_reaches_exactly_so_many_tokens_back(window):
    torch.manual_seed(window)
    q, k, v = torch.randn(2, 4, 70, 16), torch.randn(2, 2, 512, 16), torch.randn(2, 2, 512, 16)
    positions = torch.stack([torch.arange(70) + start for start in (0, 300)])
    back = positions[:, None, :, None] - torch.arange(512)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=(back >= 0) & (back < window))
    found = attend_by_position(q, k, v, positions, window=window)
    assert torch.allclose(found, plain, atol=1e-5)
    for at in (0, 33, 69):  # one query alone
        assert torch.equal(attend_by_position(q[:, :, at : at + 1], k, v, positions[:, at : at + 1], window=window), found[:, :, at : at + 1])


def test_shared_beginnings_are_counted_once():
    sequences = sorted((*range(100), n, n + 1) for n in range(10))
    assert positions_of(prefix_tree(sequences, [0] * 10)) == 100 + 10 * 2
    assert positions_of(prefix_tree(sequences, [0] * 10, shared=False)) == 10 * 102
    with pytest.raises(ValueError, match="sort the sequences"):
        prefix_tree([np.array([2, 1]), np.array([1, 2])], [0, 0])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_hugging_face_model_shares_beginnings_with_the_same_scores(family):
    transformers = pytest.importorskip("transformers")
    from models.gauntlet.scoring import Scorer
    from models.huggingface_cache import CachedCausalLM
    from models.kv_cache import KVCache

    torch.manual_seed(3)
    theirs = {
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2
            )
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=1024, n_embd=64, n_layer=2, n_head=4, n_positions=512, initializer_range=0.2)
        ),
    }[family]().eval()
    rng = random.Random(1)
    pairs = long_beginnings([(tuple(rng.choices(range(2, 1000), k=4)), tuple(rng.choices(range(2, 1000), k=rng.randint(1, 4)))) for _ in range(20)], rng)

    def found(some, batch_tokens=4096, cache_type=KVCache):
        return Scorer(CachedCausalLM(theirs), encoder(), max_seq_len=256, batch_tokens=batch_tokens, cache_type=cache_type).continuation_scores(some)

    expected = found(pairs)
    assert found(pairs, batch_tokens=1) == expected and found(pairs[:3]) == {pair: expected[pair] for pair in pairs[:3]}
    for (context, continuation), plain in found(pairs, cache_type=None).items():
        assert expected[context, continuation].sum_logprob == pytest.approx(plain.sum_logprob, abs=2e-4)
