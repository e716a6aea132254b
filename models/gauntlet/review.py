"""Verdicts: why an answer is right or wrong, from the stored response alone. Pure.

proper           right by a clear margin, and not by a rule that needs no understanding
lucky            right, but by less than the margin, or because the model follows a rule (one answer, one position, longest, shortest)
contaminated     right, and training text overlaps the item
constant_answer  wrong, with the answer the model gives to most items of the task
format_failure   wrong, with an output that is no answer at all (empty, no word or number in it)
near_miss        wrong, but the right answer is within the margin (free text: it is there, not where or how it is expected)
wrong            anything else
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.gauntlet.answers import normalise_answer

VERDICTS = ("proper", "lucky", "constant_answer", "contaminated", "format_failure", "near_miss", "wrong")
RULE_GAIN = 0.35  # a rule counts as followed when it agrees with the model this much more often than it would by chance
MIN_ITEMS_FOR_RULE = 20  # below this an agreement is accident


@dataclass(frozen=True)
class Verdict:
    """``margin``: mean log-probability of gold minus the best other, nats per token; None where there are no options."""

    verdict: str
    margin: float | None
    evidence: str


@dataclass(frozen=True)
class Rule:
    """A rule that needs no understanding, and how often the model's answers agree with it."""

    name: str
    agreement: float
    is_constant: bool  # one answer, or one position, for every item
    holds: Callable[[Mapping[str, Any]], bool]


def has_options(response: Mapping[str, Any]) -> bool:
    return len(response["mean_logprobs"]) > 1


def margin(response: Mapping[str, Any]) -> float | None:
    """Gold's mean log-probability minus the best of the others (positive: right), nats per token."""
    if not has_options(response):
        return None
    means, gold = response["mean_logprobs"], response["gold"]
    return means[gold] - max(value for index, value in enumerate(means) if index != gold)


def followed_rules(responses: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """Rules that explain most of a task's answers, strongest first. ``responses``: all of one task."""
    if len(responses) < MIN_ITEMS_FOR_RULE:
        return []
    common = Counter(r["output"].strip() for r in responses).most_common(1)[0][0]
    rules: list[tuple[str, bool, Callable[[Mapping[str, Any]], bool]]] = [(f"always {common[:40]!r}", True, lambda r: r["output"].strip() == common)]
    if all(has_options(r) for r in responses):
        place = Counter(r["prediction"] for r in responses).most_common(1)[0][0]
        rules.append((f"always option {place}", True, lambda r: r["prediction"] == place))
        if all(r["kind"] == "multiple_choice" for r in responses):
            rules.append(("always the longest option", False, lambda r: _only_extreme(r, max)))
            rules.append(("always the shortest option", False, lambda r: _only_extreme(r, min)))
        chance = sum(1 / len(r["choices"]) for r in responses) / len(responses)
    else:
        chance = 0.0
    measured = [Rule(name, sum(map(holds, responses)) / len(responses), constant, holds) for name, constant, holds in rules]
    return sorted((rule for rule in measured if rule.agreement >= min(0.9, chance + RULE_GAIN)), key=lambda rule: -rule.agreement)


def _only_extreme(response: Mapping[str, Any], extreme: Callable[[Sequence[int]], int]) -> bool:
    """Whether the chosen option is the only longest (shortest) one."""
    lengths = [len(choice) for choice in response["choices"]]
    return lengths[response["prediction"]] == extreme(lengths) and lengths.count(extreme(lengths)) == 1


def judge(response: Mapping[str, Any], *, rules: Sequence[Rule], contaminated: bool, near: float) -> Verdict:
    """The verdict on one response (a row of the ``responses`` table). ``near``: nats per token within which options count as equal."""
    gap = margin(response)
    rule = next((rule for rule in rules if rule.holds(response)), None)
    if response["correct"]:
        return _right(gap, rule, contaminated, near)
    if not has_options(response) and not any(c.isalnum() for c in response["output"]) and _expects_words(response):
        return Verdict("format_failure", gap, f"no word or number in the output {response['output'][:60]!r}")
    if rule is not None and rule.is_constant:
        return Verdict("constant_answer", gap, f"{rule.name}: {rule.agreement:.0%} of the task's answers")
    if gap is not None and gap > -near:
        return Verdict("near_miss", gap, f"gold is {-gap:.3f} nats/token behind the chosen answer, less than {near:g}")
    if gap is None and (found := _almost(response)):
        return Verdict("near_miss", gap, found)
    evidence = f"gold is {-gap:.3f} nats/token behind" if gap is not None else f"answered {response['output'][:60]!r}, expected {response['choices'][0][:60]!r}"
    return Verdict("wrong", gap, evidence)


def _right(gap: float | None, rule: Rule | None, contaminated: bool, near: float) -> Verdict:
    if contaminated:
        return Verdict("contaminated", gap, "right, but training text overlaps the item")
    if rule is not None:
        return Verdict("lucky", gap, f"{rule.name} would be right too, and explains {rule.agreement:.0%} of the task's answers")
    if gap is not None and gap < near:
        return Verdict("lucky", gap, f"gold leads by {gap:.3f} nats/token, less than {near:g}")
    return Verdict("proper", gap, f"gold leads by {gap:.3f} nats/token" if gap is not None else "exactly the expected answer")


def _expects_words(response: Mapping[str, Any]) -> bool:
    return any(any(c.isalnum() for c in choice) for choice in response["choices"])


def _almost(response: Mapping[str, Any]) -> str:
    """Why a free-text answer is almost right, or ''."""
    output, wanted = normalise_answer(response["output"]), [a for a in map(normalise_answer, response["choices"]) if a]
    if output in wanted:
        return "right but for case, spaces or punctuation"
    if any(len(answer) >= 3 and f" {answer} " in f" {output} " for answer in wanted):
        return "the right answer is in the output, not at its start"
    return ""
