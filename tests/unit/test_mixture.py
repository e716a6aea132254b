"""A mixture reads what the recipe asked: exact shares in every batch, caps kept, readable from the middle, a function of its arguments."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.data_order import MixtureOrder, ShuffledOrder, batch_indices
from models.mixture import Mixture, Phase, Plan, SourceSize, floor_sum

NAMES = ("books", "code", "docs", "news", "web")
GOLDEN = [[3, 0, 9, 6], [1, 5, 7, 8], [2, 0, 4, 4], [3, 5, 9, 6]]
GOLDEN_DIGEST = "8483409915a2a112"
weights = st.one_of(st.just(0.0), st.floats(1e-3, 100.0, allow_nan=False))


@st.composite
def requests(draw, caps: bool = False):
    """(mixture, sizes, arguments of a plan) of one to five sources and up to three phases."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    sizes = {name: SourceSize(n := draw(st.integers(1, 30)), draw(st.integers(n, n * 64))) for name in names}
    count = draw(st.integers(1, 3))
    phases = []
    for _ in range(count):
        asked = {name: draw(weights) for name in names}
        assume(any(asked.values()))
        phases.append(Phase(weights=tuple(asked.items()), share=1 / count))
    limits = {name: draw(st.floats(0.5, 4.0)) for name in names if caps and draw(st.booleans())}
    arguments = {"steps": draw(st.integers(1, 60)), "batch_sequences": draw(st.integers(1, 20)), "seed": draw(st.integers(0, 2**40))}
    return Mixture(phases=tuple(phases), max_epochs=tuple(limits.items())), sizes, arguments


def order_of(mixture: Mixture, sizes: dict[str, SourceSize], arguments: dict[str, int]) -> tuple[MixtureOrder, np.ndarray]:
    """The order, and the source number of every sequence, sources interleaved."""
    numbers = np.repeat(np.arange(len(sizes)), [sizes[name].sequences for name in sorted(sizes)])
    np.random.default_rng(0).shuffle(numbers)
    return MixtureOrder(mixture, sizes, numbers, **arguments), numbers


def asked(phase: Phase, sizes: dict[str, SourceSize]) -> dict[str, Fraction]:
    """Share of the sequences whose tokens have the phase's weights."""
    sequences = {name: Fraction(weight) * sizes[name].sequences / sizes[name].tokens for name, weight in phase.weights}
    return {name: part / sum(sequences.values()) for name, part in sequences.items()}


@given(n=st.integers(0, 60), m=st.integers(1, 50), a=st.integers(0, 99), b=st.integers(0, 99))
def test_floor_sum_equals_the_sum_written_out(n: int, m: int, a: int, b: int) -> None:
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


@settings(max_examples=60, deadline=None)
@given(requests())
def test_every_batch_holds_its_exact_share_of_every_source_rounded_down_or_up(request) -> None:
    mixture, sizes, arguments = request
    plan = Plan(mixture, sizes, **arguments)
    steps, batch, phases = arguments["steps"], arguments["batch_sequences"], len(mixture.phases)
    for step in range(steps):
        shares = [asked(phase, sizes) for number, phase in enumerate(mixture.phases) if round_up(number, phases, steps) <= step]
        before, after = plan.before(step), plan.before(step + 1)
        assert sum(after.values()) - sum(before.values()) == batch
        for name, share in shares[-1].items():
            assert abs(after[name] - before[name] - share * batch) < 1 + Fraction(1, 10**9), (step, name)


def round_up(number: int, phases: int, steps: int) -> int:
    """The first step of a phase of ``phases`` equal ones."""
    return int(number * Fraction(1 / phases) * steps + Fraction(1, 2))


@settings(max_examples=40, deadline=None)
@given(requests(), st.integers(1, 10**7))
def test_what_was_read_stays_within_a_few_sequences_of_what_was_asked(request, steps: int) -> None:
    mixture, sizes, arguments = request
    mixture = Mixture(phases=(Phase(weights=mixture.phases[0].weights),))
    read = Plan(mixture, sizes, **{**arguments, "steps": 10**7}).before(steps)
    for name, share in asked(mixture.phases[0], sizes).items():
        assert abs(read[name] - share * steps * arguments["batch_sequences"]) < 2 + math.log(steps + 1) / 2


@settings(max_examples=60, deadline=None)
@given(requests(caps=True))
def test_caps_are_kept_and_the_order_can_be_read_from_any_step(request) -> None:
    mixture, sizes, arguments = request
    try:
        order, numbers = order_of(mixture, sizes, arguments)
    except ValueError as error:
        assert "has reached its cap" in str(error)
        return
    walked = [order.batch(step) for step in range(arguments["steps"])]
    read = np.bincount(np.concatenate(walked), minlength=order.n_sequences)
    assert np.array_equal(read, order.reads(arguments["steps"]))
    names, caps = sorted(sizes), dict(mixture.max_epochs)
    for number, name in enumerate(names):
        mine = read[numbers == number]
        assert mine.sum() <= caps.get(name, math.inf) * sizes[name].sequences
        assert mine.max() - mine.min() <= 1, "of one source no sequence is read twice more often than another"
    again, _ = order_of(mixture, sizes, arguments)
    for step in reversed(range(arguments["steps"])):  # no step needs the ones before it
        assert np.array_equal(again.batch(step), walked[step])
    assert again.digest() == order.digest()


def test_a_source_at_its_cap_hands_its_share_to_the_others_in_proportion() -> None:
    sizes = {"code": SourceSize(10, 1000), "docs": SourceSize(1000, 100_000), "web": SourceSize(1000, 100_000)}
    mixture = Mixture(phases=(Phase(weights=(("code", 2.0), ("docs", 1.0), ("web", 1.0))),), max_epochs=(("code", 2.0),))
    plan = Plan(mixture, sizes, steps=100, batch_sequences=8, seed=1)
    assert plan.before(5) == {"code": 20, "docs": 10, "web": 10}
    assert plan.before(100) == {"code": 20, "docs": 390, "web": 390}


def test_when_every_source_of_a_phase_is_at_its_cap_training_is_refused() -> None:
    sizes = {"code": SourceSize(10, 1000), "docs": SourceSize(10, 1000), "web": SourceSize(1000, 100_000)}
    mixture = Mixture(phases=(Phase(weights=(("code", 1.0), ("docs", 1.0)), share=0.5), Phase(weights=(("web", 1.0),), share=0.5)), max_epochs=(("*", 2.0),))
    assert Plan(mixture, sizes, steps=10, batch_sequences=8, seed=1).before(10) == {"code": 20, "docs": 20, "web": 40}
    with pytest.raises(ValueError, match=r"Every source of phase 1 has reached its cap by step 5 of 12: code \(20 sequences\), docs \(20 sequences\)"):
        Plan(mixture, sizes, steps=12, batch_sequences=8, seed=1)


def test_phases_follow_each_other_and_a_source_goes_on_where_it_stopped() -> None:
    sizes = {"code": SourceSize(50, 5000), "web": SourceSize(50, 5000)}
    mixture = Mixture(phases=(Phase(weights=(("web", 1.0),), share=0.25), Phase(weights=(("code", 3.0), ("web", 1.0)), share=0.75)))
    order, numbers = order_of(mixture, sizes, {"steps": 12, "batch_sequences": 4, "seed": 3})
    drawn = [Counter(numbers[order.batch(step)].tolist()) for step in range(12)]
    assert drawn == [Counter({1: 4})] * 3 + [Counter({0: 3, 1: 1})] * 9
    web = [row for step in range(12) for row in order.batch(step) if numbers[row] == 1]
    assert len(set(web)) == len(web) == 21, "the second phase does not read again what the first has read"


def test_weights_are_of_tokens_not_of_sequences() -> None:
    sizes = {"long": SourceSize(100, 12_800), "short": SourceSize(100, 3200)}  # 128 and 32 tokens a sequence
    plan = Plan(Mixture(phases=(Phase(weights=(("long", 1.0), ("short", 1.0))),)), sizes, steps=100, batch_sequences=5, seed=1)
    assert plan.before(100) == {"long": 100, "short": 400}


def test_seeds_and_sources_differ_and_steps_outside_training_are_refused() -> None:
    sizes = {name: SourceSize(200, 200) for name in ("a", "b")}
    mixture = Mixture(phases=(Phase(weights=(("a", 0.3), ("b", 0.7))),))
    one, two = (order_of(mixture, sizes, {"steps": 40, "batch_sequences": 5, "seed": seed})[0] for seed in (1, 2))
    assert one.digest() != two.digest()
    assert any(not np.array_equal(one.batch(step), two.batch(step)) for step in range(40))
    for step in (-1, 40):
        with pytest.raises(ValueError, match="between 0 and 40"):
            one.batch(step)


def test_the_order_never_changes_between_releases() -> None:
    """A resumed run, and a rebuilt training set, rely on these exact numbers."""
    sizes = {"code": SourceSize(4, 400), "web": SourceSize(6, 600)}
    mixture = Mixture(phases=(Phase(weights=(("code", 1.0), ("web", 2.0))),))
    order = MixtureOrder(mixture, sizes, np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]), steps=4, batch_sequences=4, seed=1)
    assert [order.batch(step).tolist() for step in range(4)] == GOLDEN
    assert order.digest() == GOLDEN_DIGEST


def test_an_unknown_source_is_named_beside_the_known_ones() -> None:
    sizes = {"code": SourceSize(4, 400), "web": SourceSize(6, 600)}
    for mixture in (Mixture(phases=(Phase(weights=(("wbe", 1.0),)),)), Mixture(phases=(Phase(weights=(("web", 1.0),)),), max_epochs=(("wbe", 1.0),))):
        with pytest.raises(ValueError, match=r"names the sources wbe; the corpus has code, web"):
            Plan(mixture, sizes, steps=4, batch_sequences=4, seed=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phase(weights=(("a", 1.0), ("a", 2.0))), "names a source twice"),
        (lambda: Phase(weights=(("a", -1.0),)), "not negative"),
        (lambda: Phase(weights=(("a", float("nan")),)), "must be finite"),
        (lambda: Phase(weights=(("a", 0.0),)), "not all 0"),
        (lambda: Phase(weights=(("a", 1.0),), share=0.0), "above 0"),
        (lambda: Mixture(phases=(Phase(weights=(("a", 1.0),), share=0.5),)), "add up to 1"),
        (lambda: Mixture(phases=(Phase(weights=(("a", 1.0),)),), max_epochs=(("a", 0.0),)), "max_epochs must be above 0"),
        (lambda: Mixture(max_epochs=(("a", 2.0),)), "max_epochs needs phases"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mixture_survives_its_json_form_and_is_false_only_without_phases() -> None:
    mixture = Mixture(phases=(Phase(weights=(("code", 1.0), ("web", 2.5))),), max_epochs=(("*", 4.0),))
    assert Mixture.from_json(json.loads(json.dumps(asdict(mixture)))) == mixture
    assert mixture and not Mixture()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), batch=st.integers(1, 9), n=st.integers(1, 30), steps=st.integers(0, 40))
def test_without_a_mixture_the_order_is_the_epoch_shuffle_and_its_reads_are_counted(seed: int, batch: int, n: int, steps: int) -> None:
    order = ShuffledOrder(seed=seed, batch_sequences=batch, n_sequences=n)
    walked = [batch_indices(seed=seed, step=step, batch_sequences=batch, n_sequences=n) for step in range(steps)]
    assert all(np.array_equal(order.batch(step), rows) for step, rows in enumerate(walked))
    assert np.array_equal(order.reads(steps), np.bincount(np.concatenate([np.zeros(0, np.int64), *walked]), minlength=n))
