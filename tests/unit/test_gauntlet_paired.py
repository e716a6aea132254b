"""Paired comparison: against scipy, against brute force, and in thousands of simulated pairs of models."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from expectations import gates
from models.gauntlet import paired
from models.gauntlet.paired import Answers, Stratum

NO_CLUSTER = {"cluster": (), "contaminated": ()}


def answers(correct, *, benchmark=None, category=None, cluster=(), subset=None, hashes=None):
    n = len(correct)
    return Answers(
        benchmark=benchmark or ["t"] * n, category=category or ["c"] * n, subset=subset or [""] * n, item_id=[f"i{k}" for k in range(n)],
        prompt_hash=hashes or ["h"] * n, correct=list(correct), cluster=cluster,
    )  # fmt: skip


def effect(found, name):
    return next(e for e in found if e.name == name)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    exact, mid = paired.mcnemar(gained, lost)
    oracle = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert exact == pytest.approx(oracle)
    assert mid <= exact + 1e-12
    assert paired.mcnemar(lost, gained) == (exact, mid)


def test_mid_p_is_fagerlands():
    # Fagerland, Lydersen & Laake 2013, table 1 (airway hyper-responsiveness): 1 and 7 discordant pairs, exact .070, mid-p .039
    assert paired.mcnemar(1, 7) == (pytest.approx(0.0703, abs=1e-4), pytest.approx(0.0391, abs=1e-4))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p):
    adjusted = paired.holm(p)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        rejected, ranked = set(), sorted(range(len(p)), key=lambda i: p[i])
        for step, i in enumerate(ranked):
            if p[i] * (len(p) - step) > alpha:
                break
            rejected.add(i)
        assert {i for i, a in enumerate(adjusted) if a <= alpha} == rejected


def test_only_items_with_the_same_prompt_are_paired_and_the_rest_is_reported():
    a = answers([True, False, True, True])
    b = Answers(["t"] * 4, ["c"] * 4, [""] * 4, ["i3", "i1", "i0", "new"], ["h", "other", "h", "h"], [False, True, True, True])
    pairs, left_out = paired.pair(a, b)
    assert (pairs.a.tolist(), pairs.b.tolist()) == ([True, True], [True, False])  # i0, i3
    assert left_out == [paired.Unmatched("t", only_a=1, only_b=1, other_prompt=1)]
    with pytest.raises(ValueError, match="answered twice"):
        paired.pair(a, Answers(["t"] * 2, ["c"] * 2, [""] * 2, ["i0", "i0"], ["h"] * 2, [True, True]))
    with pytest.raises(ValueError, match="nothing to compare"):
        paired.compare(paired.pair(a, answers([True], hashes=["x"]))[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_order_of_rows_changes_nothing_and_swapping_the_models_changes_the_sign(seed):
    rng = np.random.default_rng(seed)
    n = 60
    a, b = rng.random(n) < 0.5, rng.random(n) < 0.6
    bench, cat = [f"t{k % 3}" for k in range(n)], [f"c{k % 3 // 2}" for k in range(n)]
    one, two = answers(a, benchmark=bench, category=cat), answers(b, benchmark=bench, category=cat)
    order = rng.permutation(n)
    shuffled = Answers(*([column[i] for i in order] if column else () for column in (getattr(two, f) for f in Answers.__dataclass_fields__)))
    forward = paired.compare(paired.pair(one, two)[0], resamples=199)
    assert forward == paired.compare(paired.pair(one, shuffled)[0], resamples=199)
    for f, r in zip(forward, paired.compare(paired.pair(two, one)[0], resamples=199), strict=True):
        assert (f.difference, f.gained, f.lost) == (pytest.approx(-r.difference), r.lost, r.gained)
        assert f.stderr == pytest.approx(r.stderr) and f.detectable == pytest.approx(r.detectable, rel=0.2)
        if f.level == "task":
            assert f.p == pytest.approx(r.p)


def test_means_are_those_of_the_averages():
    """MMLU-like: a task is the mean over its subsets, a category the mean over its tasks, the average the mean over categories."""
    bench, cat = ["m"] * 6 + ["x"] * 2 + ["y"] * 4, ["k"] * 8 + ["r"] * 4
    subset = ["s1"] * 4 + ["s2"] * 2 + [""] * 6
    a = [1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0]
    b = [1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 1]
    found = paired.compare(paired.pair(answers(a, benchmark=bench, category=cat, subset=subset), answers(b, benchmark=bench, category=cat, subset=subset))[0])
    m, x, y = ((2 / 4) + (-1 / 2)) / 2, -1 / 2, 2 / 4
    assert effect(found, "m").difference == pytest.approx(m) and effect(found, "k").difference == pytest.approx((m + x) / 2)
    assert effect(found, "average").difference == pytest.approx(((m + x) / 2 + y) / 2)
    assert effect(found, "average").accuracy_a == pytest.approx((((1 / 4 + 1 / 2) / 2 + 1) / 2 + 0) / 2)
    assert (effect(found, "average").n, effect(found, "average").n_tasks) == (12, 3)


def test_suites_are_averaged_apart():
    found = paired.compare(paired.pair(*[answers([True] * 4, benchmark=["a", "a", "g", "g"], category=["c", "c", "gauntlet/c", "gauntlet/c"])] * 2)[0])
    assert [e.name for e in found if e.level == "average"] == ["average", "gauntlet/average"]


def test_interval_and_error_are_those_of_the_plain_bootstrap():
    """The draws by kind of cluster against resampling the rows themselves."""
    rng = np.random.default_rng(5)
    cluster = [f"d{k}" for k in np.repeat(np.arange(40), 3)]
    a = np.repeat(rng.random(40) < 0.5, 3)
    b = np.where(np.repeat(rng.random(40) < 0.3, 3), True, a)  # whole documents change
    found = effect(paired.compare(paired.pair(answers(a, cluster=cluster), answers(b, cluster=cluster))[0]), "t")
    d = (b.astype(float) - a).reshape(40, 3)
    means = d[rng.integers(0, 40, (9999, 40))].mean(axis=(1, 2))
    assert found.test == "sign_flip"
    assert (found.low, found.high) == (pytest.approx(np.quantile(means, 0.025), abs=0.012), pytest.approx(np.quantile(means, 0.975), abs=0.012))
    assert found.stderr == pytest.approx(means.std(), rel=0.05)
    alone = effect(paired.compare(paired.pair(answers(a), answers(b))[0]), "t")
    assert alone.stderr < 0.65 * found.stderr, "items of one document count for less than as many documents"


def test_sign_flips_are_every_assignment_of_signs():
    """Clusters with differences 2, 1, 1, -1 against the 16 sign assignments written out."""
    cell = Stratum("t", "c", "", np.array([2.0, 1.0, -1.0]), np.array([3.0, 2.0, 1.0]), np.array([1, 2, 1]), 4, 1)
    drawn = paired.sign_flips([cell], np.random.default_rng(0), 40_000)[:, 0] * cell.n
    every = [sum(s * v for s, v in zip(signs, (2, 1, 1, 1), strict=True)) for signs in itertools.product((-1, 1), repeat=4)]
    for value in set(every):
        assert (drawn == value).mean() == pytest.approx(every.count(value) / 16, abs=0.012)
    assert drawn.var() == pytest.approx(cell.flip_variance * cell.n**2, rel=0.03)


def test_models_that_agree_everywhere_are_not_called_equal():
    found = effect(paired.compare(paired.pair(answers([True] * 50), answers([True] * 50))[0]), "t")
    assert (found.p, found.p_adjusted, found.difference) == (1.0, 1.0, 0.0)
    assert -found.low == found.high == pytest.approx(1 - 0.025 ** (1 / 50)) and found.detectable > 0.02


# --- Simulated pairs of models ------------------------------------------------------------------------------------------------------------------
# An item is answered differently by the two models with chance ``differ``, in either direction alike; B may lose ``loss`` (a share of all items).
# Items are independent of each other. .5: two models right half the time that know nothing of each other; .25: easy items are easy for both
# (chances Beta(.5, .5), correlation .5); .02: almost the same model, so that differences are a few items and p takes few values.

OURS = {"next_line": ("text", 400), "docstring": ("text", 400), "identifier": ("code", 400), "brackets": ("symbolic", 400), "arithmetic": ("symbolic", 400)}
V03_LOCAL_SIZES = {
    "world_knowledge": (2117, 20321, 2376, 1172, 3000), "commonsense_reasoning": (100, 1954, 1221, 1838, 500, 174, 2289),
    "language_understanding": (5153, 273, 1267), "symbolic_problem_solving": (1000, 210, 1000, 1000, 1319, 300, 230),
    "reading_comprehension": (3270, 268, 510, 206),
}  # fmt: skip
V03_LOCAL = {f"{category} {k}": (category, n) for category, sizes in V03_LOCAL_SIZES.items() for k, n in enumerate(sizes)}  # 26 benchmarks, 52,988 items
TINY = {"a": ("one", 5), "b": ("two", 8), "c": ("three", 20), "d": ("three", 3), "e": ("four", 400), "f": ("five", 2000)}
SUITES = {"v0.3-local": V03_LOCAL, "ours": OURS, "tiny categories": TINY}


def simulated(suite, n_pairs, rng, differ, loss):
    """``n_pairs`` times the strata of one pair of models. ``loss``: a share, or one per category."""
    counts = {}
    for name, (category, n) in suite.items():
        lost = loss.get(category, 0.0) if isinstance(loss, dict) else loss
        counts[name] = rng.multinomial(n, [(differ - lost) / 2, (differ + lost) / 2, 1 - differ], size=n_pairs)
    for k in range(n_pairs):
        yield [Stratum.of_items(name, category, n=n, gained=int(counts[name][k, 0]), lost=int(counts[name][k, 1])) for name, (category, n) in suite.items()]


def judged(suite, n_pairs, seed, *, differ=0.25, loss=0.0):
    """The losses of every pair."""
    pairs = simulated(suite, n_pairs, np.random.default_rng(seed), differ, loss)
    return [paired.losses(cells, seed=seed + k, resamples=499) for k, cells in enumerate(pairs)]


def refused(pairs):
    """Share of pairs that the two gates of the comparison with a champion refuse."""
    candidate = gates.Candidate(1.0, 2.0, 0.5, 0.01, {}, 0.0, 1.0)
    named = ("not_worse_than_champion", "no_category_worse")
    return np.mean([any(not gate.passed for gate in gates.evaluate(candidate, candidate, found) if gate.name in named) for found in pairs])


@pytest.mark.parametrize("differ", [0.5, 0.25, 0.02], ids=["uncorrelated", "correlated", "nearly the same"])
@pytest.mark.parametrize("suite", SUITES)
def test_equal_models_raise_at_most_five_percent_false_alarms(suite, differ):
    """Over all categories and averages together. Three binomial errors of the simulation are allowed above 5 %."""
    n_pairs = 1000
    assert refused(judged(SUITES[suite], n_pairs, 11, differ=differ)) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / n_pairs)


def test_without_joint_adjustment_equal_models_would_be_refused_more_often():
    """What the simulation above would show of categories tested each at 5 %."""
    unadjusted = []
    for cells in simulated(V03_LOCAL, 300, np.random.default_rng(3), 0.25, 0.0):
        by_category = {}
        for cell in cells:
            by_category.setdefault(cell.category, []).append(cell)
        z = [sum(c.difference for c in own) / np.sqrt(sum(c.flip_variance for c in own)) for own in by_category.values()]
        unadjusted.append(min(stats.norm.cdf(z)) < 0.05)
    assert np.mean(unadjusted) > 0.15


def test_a_loss_of_two_points_is_caught_where_the_suite_is_large_enough():
    """v0.3-local and 5 tasks of 1,600 items see it; 5 tasks of 400 (the default suite) do not, and say so: they detect more than two points."""
    large = {name: (category, 1600) for name, (category, _) in OURS.items()}
    assert refused(judged(large, 300, 21, loss=0.02)) >= 0.8
    assert refused(judged(V03_LOCAL, 300, 23, loss=0.02)) >= 0.8
    assert refused(judged(OURS, 300, 22, loss=0.02)) < 0.6
    average = {n: next(x.detectable for x in judged(s, 1, 1)[0] if x.level == "average") for n, s in (("large", large), ("ours", OURS), ("v03", V03_LOCAL))}
    assert average["v03"] < 0.02 and average["large"] < 0.02 < average["ours"]


@pytest.mark.parametrize("suite", ["v0.3-local", "ours"])
def test_the_detectable_loss_is_the_one_found_four_times_in_five(suite):
    """A loss of exactly that size, planted in one category alone, is found in this category by 80 % of simulated pairs."""
    for category in dict.fromkeys(category for category, _ in SUITES[suite].values()):
        loss = np.mean([x.detectable for found in judged(SUITES[suite], 20, 5) for x in found if x.name == category])
        found = [next(x.p_adjusted for x in pair if x.name == category) < gates.SIGNIFICANCE for pair in judged(SUITES[suite], 300, 6, loss={category: loss})]
        assert 0.72 <= np.mean(found) <= 0.88, (category, loss)
