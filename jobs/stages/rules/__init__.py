"""Rule sets of the clean stage by name. A new rule is a function in one of these files and a line in its ``rules``.

A set may also edit the text (C4 drops lines). Edits come first, in the order of the names, and every rule measures what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobs.contract import MoelineError
from jobs.stages.rules import c4, code, fineweb, gopher, language
from jobs.stages.rules.features import Features
from jobs.stages.rules.rule import Rule

RULE_SETS: dict[str, tuple[Rule, ...]] = {
    "c4": c4.rules("c4"),
    "c4_fineweb": c4.rules("c4_fineweb", min_sentences=5),
    "code": code.rules(),
    "gopher_quality": gopher.quality_rules(),
    "gopher_repetition": gopher.repetition_rules(),
    "fineweb": fineweb.rules(),
    "language": language.rules("language"),
    "english": language.rules("english"),
}
EDITS: dict[str, Callable[[str], tuple[str, dict[str, float]]]] = {
    "c4": c4.edit("c4"),
    "c4_fineweb": c4.edit("c4_fineweb", min_words_per_line=3, require_end_mark=False),
}


def select(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of the named sets, in order; raises MoelineError for an unknown or repeated name."""
    names = tuple(names)
    unknown = sorted(name for name in set(names) - RULE_SETS.keys() if not language.is_language_set(name))
    if unknown:
        known = ", ".join(sorted(RULE_SETS))
        raise MoelineError(f"Unknown rule set {', '.join(map(repr, unknown))}. Known rule sets: {known}, language:<code>+<code>.")
    if len(set(names)) != len(names):
        raise MoelineError(f"A rule set is named twice in {', '.join(names)}. Name each once.")
    return tuple(rule for name in names for rule in (RULE_SETS[name] if name in RULE_SETS else language.rules(name)))


def features(names: Iterable[str], text: str, identify: Callable[[str], dict[str, float]] | None = None) -> Features:
    """What the rules of the named sets measure: the text after the sets' edits, and what the edits counted.

    ``identify`` gives the probability of each language; without it, a model is loaded if a rule asks.
    """
    edits: dict[str, float] = {}
    for name in names:
        if name in EDITS:
            text, counts = EDITS[name](text)
            edits |= counts
    return Features(text, edits, identify or language.Identifier())


def measure(names: Iterable[str], text: str) -> dict[str, float]:
    """Every rule's value on one text, by rule name."""
    names = tuple(names)
    measured = features(names, text)
    return {rule.name: float(rule.measure(measured)) for rule in select(names)}


__all__ = ["EDITS", "RULE_SETS", "Features", "Rule", "features", "language", "measure", "select"]
