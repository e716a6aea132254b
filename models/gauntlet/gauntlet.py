"""A gauntlet: which benchmarks make a category, what guessing is worth, how they are weighted, and the averages with a name.

Reads Foundry's ``eval_gauntlet_*.yaml`` and computes what its EvalGauntlet (llm-foundry 8c8dd48) reports, with one difference: Foundry drops
a category that misses a benchmark, and averages whatever is left under the same name. Here that is an error, or, when a partial result is
asked for, a ``partial/<name>``. Change here: weights, named averages. Not here: what a benchmark scores (averages.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.gauntlet.averages import Score

EQUAL, SAMPLE_SZ, LOG_SAMPLE_SZ = "EQUAL", "SAMPLE_SZ", "LOG_SAMPLE_SZ"
MAX_YAML_BYTES = 1 << 20
MAX_YAML_DEPTH = 50  # a gauntlet has six; the YAML reader takes minutes over a thousand
_KEYS = {"weighting", "subtract_random_baseline", "rescale_accuracy", "averages", "categories", "destination_dir"}


@dataclass(frozen=True)
class GauntletBenchmark:
    """``random_baseline``: the accuracy of guessing, as Mosaic gives it."""

    name: str
    shots: int
    random_baseline: float

    @property
    def key(self) -> str:
        return f"{self.name}/{self.shots}-shot"


@dataclass(frozen=True)
class Gauntlet:
    """``categories``: benchmarks by category, ``averages``: categories by name of average, both in the file's order."""

    categories: Mapping[str, tuple[GauntletBenchmark, ...]]
    averages: Mapping[str, tuple[str, ...]]
    weighting: str = EQUAL
    subtract_random_baseline: bool = True
    rescale_accuracy: bool = True

    def places(self) -> dict[tuple[str, int], tuple[str, float]]:
        """(label, shots) -> (category, random baseline)."""
        return {(b.name, b.shots): (name, b.random_baseline) for name, members in self.categories.items() for b in members}


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. ValueError for what is not plain data: tags, anchors (they can expand without bound), nesting without end."""
    import yaml

    try:
        if file.stat().st_size > MAX_YAML_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes; a task list has at most {MAX_YAML_BYTES}")
        text = file.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_YAML_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it uses anchors and aliases; write the values out")
        content = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"Cannot read {file}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no mapping; expected Foundry's icl_tasks or eval_gauntlet.")
    return content


def read_gauntlet(file: Path) -> Gauntlet:
    """The gauntlet of an ``eval_gauntlet`` YAML; ValueError naming the setting that is wrong."""
    raw = read_yaml(file)
    raw = raw.get("eval_gauntlet", raw)
    if not isinstance(raw, dict) or not isinstance(raw.get("categories"), list) or not raw["categories"]:
        raise ValueError(f"{file}: a gauntlet needs categories, a list of name and benchmarks.")
    if unknown := set(map(str, raw)) - _KEYS:
        raise ValueError(f"{file}: unknown settings {sorted(unknown)}. Known: {', '.join(sorted(_KEYS))}.")
    weighting, subtract, rescale = raw.get("weighting", EQUAL), raw.get("subtract_random_baseline", True), raw.get("rescale_accuracy", True)
    if weighting not in (EQUAL, SAMPLE_SZ, LOG_SAMPLE_SZ):
        raise ValueError(f"{file}: weighting is {weighting!r}; it must be {EQUAL}, {SAMPLE_SZ} or {LOG_SAMPLE_SZ}.")
    if not isinstance(subtract, bool) or not isinstance(rescale, bool):
        raise ValueError(f"{file}: subtract_random_baseline and rescale_accuracy must be true or false.")
    if rescale and not subtract:
        raise ValueError(f"{file}: rescale_accuracy without subtract_random_baseline has no meaning. Set both, or only the second.")
    categories: dict[str, tuple[GauntletBenchmark, ...]] = {}
    for category in raw["categories"]:
        name, members = _category(category, file)
        if name in categories:
            raise ValueError(f"{file}: category {name} is there twice.")
        categories[name] = members
    keys = [b.key for members in categories.values() for b in members]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{file}: benchmarks are there twice: {', '.join(twice)}.")
    return Gauntlet(categories, _averages(raw.get("averages"), categories, file), weighting, subtract, rescale)


def _category(raw: Any, file: Path) -> tuple[str, tuple[GauntletBenchmark, ...]]:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or not isinstance(raw.get("benchmarks"), list) or not raw["benchmarks"]:
        raise ValueError(f"{file}: a category needs a name and a list of benchmarks that is not empty, found {str(raw)[:200]}.")
    return raw["name"], tuple(_benchmark(one, raw["name"], file) for one in raw["benchmarks"])


def _benchmark(raw: Any, category: str, file: Path) -> GauntletBenchmark:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ValueError(f"{file}: a benchmark of {category} has no name: {str(raw)[:200]}.")
    shots, baseline = raw.get("num_fewshot"), raw.get("random_baseline")
    if type(shots) is not int or shots < 0:
        raise ValueError(f"{file}: num_fewshot of {raw['name']} is {str(shots)[:50]!r}; it must be a whole number, 0 or more.")
    if type(baseline) not in (int, float) or not 0.0 <= baseline < 1.0:
        raise ValueError(f"{file}: random_baseline of {raw['name']} is {str(baseline)[:50]!r}; it must be a number from 0 to less than 1.")
    return GauntletBenchmark(raw["name"], shots, float(baseline))


def _averages(raw: Any, categories: Mapping[str, Any], file: Path) -> dict[str, tuple[str, ...]]:
    if raw is None:
        return {"default_average": tuple(categories)}
    if not isinstance(raw, dict) or not all(isinstance(members, list) and members for members in raw.values()):
        raise ValueError(f"{file}: averages must give each name a list of categories that is not empty.")
    for name, members in raw.items():
        if name in categories:
            raise ValueError(f"{file}: {name} is an average and a category; give the average another name.")
        if unknown := [str(member) for member in members if member not in categories]:
            raise ValueError(f"{file}: average {name} names categories that are not defined: {', '.join(unknown)}.")
    return {str(name): tuple(members) for name, members in raw.items()}


def gauntlet_averages(gauntlet: Gauntlet, scores: Sequence[Score], *, partial: bool = False, sampled: bool = False) -> dict[str, float]:
    """Category scores and named averages, as Foundry's EvalGauntlet computes them from the accuracies, in the YAML's order.

    ``scores``: one per benchmark (label, shots), of one mode. In mode exact Mosaic's baseline is subtracted, in mode fixed the higher of chance
    and best constant. A missing benchmark, or an accuracy that is no number, is a ValueError that names it; with ``partial`` what is missing
    is left out, and every category and average it belongs to is called ``partial/<name>``. So are all, where the scores are of a sample of
    the items (``sampled``).
    """
    if len({score.mode for score in scores}) > 1:
        raise ValueError("The scores are of modes exact and fixed. Average each mode on its own.")
    by_key = {(score.benchmark.partition("/")[0], score.shots): score for score in scores}
    if bad := [score.benchmark for score in scores if not math.isfinite(score.accuracy)]:
        raise ValueError(f"The accuracy of {', '.join(bad)} is not a number; no average can be taken.")
    missing = [b.key for members in gauntlet.categories.values() for b in members if (b.name, b.shots) not in by_key]
    if missing and not partial:
        raise ValueError(f"No score for {', '.join(missing)}: the gauntlet cannot be averaged. Evaluate them, or ask for a partial result.")
    return {row.category: row.score for row in _rows(gauntlet, by_key, sampled)}


def gauntlet_rows(gauntlet: Gauntlet, scores: Sequence[Score], *, partial: bool = False, sampled: bool = False) -> list[Score]:
    """As ``gauntlet_averages``, as rows (benchmark "*", category the name): ``score`` is that number, accuracy and baselines are weighted alike.

    Standard errors are added in quadrature with the same weights.
    """
    gauntlet_averages(gauntlet, scores, partial=partial, sampled=sampled)  # refuses what cannot be averaged
    return _rows(gauntlet, {(score.benchmark.partition("/")[0], score.shots): score for score in scores}, sampled)


def gauntlet_scored(gauntlet: Gauntlet, scores: Sequence[Score]) -> list[Score]:
    """The rows with ``score`` as this gauntlet enters them into its means: baseline subtracted or not, rescaled or not."""
    members = {b.key: b for inside in gauntlet.categories.values() for b in inside}
    return [replace(one, score=_scored(gauntlet, members[f"{one.benchmark.partition('/')[0]}/{one.shots}-shot"], one)) for one in scores]


def _rows(gauntlet: Gauntlet, by_key: Mapping[tuple[str, int], Score], sampled: bool) -> list[Score]:
    rows: list[Score] = []
    values: dict[str, tuple[Score, bool]] = {}
    for name, members in gauntlet.categories.items():
        here = [(b, by_key[b.name, b.shots]) for b in members if (b.name, b.shots) in by_key]
        if here:
            whole = len(here) == len(members) and not sampled
            weights = [_weight(gauntlet.weighting, score.n) for _, score in here]
            inside = [replace(score, score=_scored(gauntlet, b, score)) for b, score in here]
            rows.append(_weighted(inside, [w / sum(weights) for w in weights], _named(name, whole)))
            values[name] = (rows[-1], whole)
    for name, members in gauntlet.averages.items():
        if found := [values[member] for member in members if member in values]:
            whole = len(found) == len(members) and all(complete for _, complete in found)
            row = _weighted([one for one, _ in found], [1 / len(found)] * len(found), _named(name, whole))
            rows.append(replace(row, score=sum(one.score for one, _ in found) / len(found)))  # divided last, as Foundry does
    if not rows:
        raise ValueError("None of the gauntlet's benchmarks has a score.")
    return rows


def _weighted(scores: Sequence[Score], weights: Sequence[float], name: str) -> Score:
    """The weighted mean; weights sum to 1."""

    def mean(field: str) -> float:
        return sum(getattr(score, field) * weight for score, weight in zip(scores, weights, strict=True))

    return replace(
        scores[0], benchmark="*", category=name, shots=0, n=sum(s.n for s in scores), metric="mean", accuracy=mean("accuracy"), chance=mean("chance"),
        stderr=math.sqrt(sum((s.stderr * w) ** 2 for s, w in zip(scores, weights, strict=True))), best_constant=mean("best_constant"), score=mean("score"),
        accuracy_clean=None if any(s.accuracy_clean is None for s in scores) else mean("accuracy_clean"), n_contaminated=sum(s.n_contaminated for s in scores),
    )  # fmt: skip


def _named(name: str, whole: bool) -> str:
    return name if whole else f"partial/{name}"


def _weight(weighting: str, n: int) -> float:
    if weighting == EQUAL:
        return 1.0
    return float(max(n, 1)) if weighting == SAMPLE_SZ else max(math.log2(max(n, 1)), 1.0)


def _scored(gauntlet: Gauntlet, benchmark: GauntletBenchmark, score: Score) -> float:
    baseline = benchmark.random_baseline if score.mode == "exact" else max(score.chance, score.best_constant)
    value = score.accuracy - baseline if gauntlet.subtract_random_baseline else score.accuracy
    return value / (1.0 - baseline) if gauntlet.rescale_accuracy else value
