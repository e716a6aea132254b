"""Rule sets of the clean stage by name. A new rule is a function in one of these files and a line in its ``rules``.

A set may also edit the text (C4 drops lines). Edits come first, in the order of the names, and every rule measures what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobs.contract import MoelineError
from jobs.stages.rules import c4, code, fineweb, gopher
from jobs.stages.rules.features import Features
from jobs.stages.rules.rule import Rule

RULE_SETS: dict[str, tuple[Rule, ...]] = {
    "c4": c4.rules("c4"),
    "c4_fineweb": c4.rules("c4_fineweb", min_sentences=5),
    "code": code.rules(),
    "gopher_quality": gopher.quality_rules(),
    "gopher_repetition": gopher.repetition_rules(),
    "fineweb": fineweb.rules(),
}
EDITS: dict[str, Callable[[str], tuple[str, dict[str, float]]]] = {
    "c4": c4.edit("c4"),
    "c4_fineweb": c4.edit("c4_fineweb", min_words_per_line=3, require_end_mark=False),
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


def features(names: Iterable[str], text: str) -> Features:
    """What the rules of the named sets measure: the text after the sets' edits, and what the edits counted."""
    edits: dict[str, float] = {}
    for name in names:
        if name in EDITS:
            text, counts = EDITS[name](text)
            edits |= counts
    return Features(text, edits)


def measure(names: Iterable[str], text: str) -> dict[str, float]:
    """Every rule's value on one text, by rule name."""
    names = tuple(names)
    measured = features(names, text)
    return {rule.name: float(rule.measure(measured)) for rule in select(names)}


__all__ = ["EDITS", "RULE_SETS", "Features", "Rule", "features", "measure", "select"]
