"""Verdicts: why an answer is right or wrong, from the stored response alone. Pure.

proper           right by a clear margin, and not by a rule that needs no understanding
lucky            right, but by less than the margin, or because the model follows a rule (one answer, one position, longest, shortest)
contaminated     right, and training text overlaps the item
constant_answer  wrong, with the answer the model gives to most items of the task
format_failure   wrong, with an output that is no answer at all (empty, no word or number in it)
near_miss        wrong, but the right answer is within the margin (free text: it is there, not where or how it is expected)
wrong            anything else

Beside its verdict every response has its evidence as data (Verdict). ``key_suspect`` is weak evidence, from one model alone: a wrong
answer given with a lead at which this model, on this task, otherwise agrees with the key. Only several models can audit a key.
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
SURE_AGREEMENT = 0.9  # an answer is given surely when so many of the answers with at least its lead agree with the key
SURE_ITEMS = 20  # and there are at least so many of them


@dataclass(frozen=True)
class Verdict:
    """A verdict and its evidence. Numbers about options are None where there are none; log-probabilities are means, nats per token."""

    verdict: str
    margin: float | None  # gold minus the best other
    evidence: str  # one line for a person
    second_choice: int | None = None  # the option after the chosen one
    lead: float | None = None  # chosen minus second choice, >= 0
    pattern: str | None = None  # rule that needs no understanding and would give this answer too
    pattern_agreement: float | None = None  # share of the task's answers it explains
    format: str = "ok"  # ok | empty | no_words (nothing in the output could be an answer)
    contaminated: bool = False  # training text overlaps the item
    key_suspect: bool = False


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


def second_choice(response: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """(the option after the chosen one, the chosen option's lead over it in nats per token); (None, None) without options."""
    if not has_options(response):
        return None, None
    means, chosen = response["mean_logprobs"], response["prediction"]
    second = max((i for i in range(len(means)) if i != chosen), key=lambda i: (means[i], -i))
    return second, means[chosen] - means[second]


def sure_lead(responses: Sequence[Mapping[str, Any]]) -> float | None:
    """The smallest lead from which this model's answers to this task agree with the key SURE_AGREEMENT of the time, or None.

    Wrong answers above it are where a key may be wrong, or where the model is surely wrong; one model cannot tell which.
    """
    known = sorted(((second_choice(r)[1] or 0.0, bool(r["correct"])) for r in responses if has_options(r)), reverse=True)
    found, right = None, 0
    for n, (lead, correct) in enumerate(known, 1):
        right += correct
        tied = n < len(known) and known[n][0] == lead
        if n >= SURE_ITEMS and not tied and right >= SURE_AGREEMENT * n:
            found = lead
    return found


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


def judge(response: Mapping[str, Any], *, rules: Sequence[Rule], contaminated: bool, near: float, sure: float | None = None) -> Verdict:
    """The verdict on one response (a row of the ``responses`` table), with its evidence.

    ``near``: nats per token within which options count as equal. ``sure``: what sure_lead says of the task.
    """
    gap = margin(response)
    second, lead = second_choice(response)
    rule = next((rule for rule in rules if rule.holds(response)), None)
    form = _format(response)
    verdict, evidence = _right(gap, rule, contaminated, near) if response["correct"] else _wrong(response, gap, rule, form, near)
    suspect = verdict in ("wrong", "near_miss") and rule is None and sure is not None and lead is not None and lead >= max(sure, near)
    if suspect:
        evidence += f"; answers with its lead of {lead:.3f} or more agree with the key at least {SURE_AGREEMENT:.0%} of the time, so the key may be wrong"
    return Verdict(
        verdict, gap, evidence, second, lead, rule.name if rule else None, rule.agreement if rule else None, form, contaminated, suspect
    )  # fmt: skip


def _wrong(response: Mapping[str, Any], gap: float | None, rule: Rule | None, form: str, near: float) -> tuple[str, str]:
    if form != "ok":
        return "format_failure", f"no word or number in the output {response['output'][:60]!r}"
    if rule is not None and rule.is_constant:
        return "constant_answer", f"{rule.name}: {rule.agreement:.0%} of the task's answers"
    if gap is not None and gap > -near:
        return "near_miss", f"gold is {-gap:.3f} nats/token behind the chosen answer, less than {near:g}"
    if gap is None and (found := _almost(response)):
        return "near_miss", found
    return (
        "wrong",
        f"gold is {-gap:.3f} nats/token behind" if gap is not None else f"answered {response['output'][:60]!r}, expected {response['choices'][0][:60]!r}",
    )


def _right(gap: float | None, rule: Rule | None, contaminated: bool, near: float) -> tuple[str, str]:
    if contaminated:
        return "contaminated", "right, but training text overlaps the item"
    if rule is not None:
        return "lucky", f"{rule.name} would be right too, and explains {rule.agreement:.0%} of the task's answers"
    if gap is not None and gap < near:
        return "lucky", f"gold leads by {gap:.3f} nats/token, less than {near:g}"
    return "proper", f"gold leads by {gap:.3f} nats/token" if gap is not None else "exactly the expected answer"


def _format(response: Mapping[str, Any]) -> str:
    """Whether the output could be an answer at all; a chosen option always can."""
    if has_options(response) or any(c.isalnum() for c in response["output"]) or not _expects_words(response):
        return "ok"
    return "no_words" if response["output"].strip() else "empty"


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
