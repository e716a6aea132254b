"""Rule sets of the clean stage by name. A new rule is a function in one of these files and a line in its ``rules``."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.contract import MoelineError
from jobs.stages.rules import code, fineweb, gopher
from jobs.stages.rules.features import Features
from jobs.stages.rules.rule import Rule

RULE_SETS: dict[str, tuple[Rule, ...]] = {
    "code": code.rules(),
    "gopher_quality": gopher.quality_rules(),
    "gopher_repetition": gopher.repetition_rules(),
    "fineweb": fineweb.rules(),
}


def select(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of the named sets, in order; raises MoelineError for an unknown or repeated name."""
    names = tuple(names)
    unknown = sorted(set(names) - RULE_SETS.keys())
    if unknown:
        raise MoelineError(f"Unknown rule set {', '.join(map(repr, unknown))}. Known rule sets: {', '.join(sorted(RULE_SETS))}.")
    if len(set(names)) != len(names):
        raise MoelineError(f"A rule set is named twice in {', '.join(names)}. Name each once.")
    return tuple(rule for name in names for rule in RULE_SETS[name])


def measure(rules: Iterable[Rule], text: str) -> dict[str, float]:
    """Every rule's value on one text, by rule name."""
    features = Features(text)
    return {rule.name: rule.measure(features) for rule in rules}


__all__ = ["RULE_SETS", "Features", "Rule", "measure", "select"]
