"""Symbolic tasks made from a seed: their answers follow from a rule, so no corpus can hold them and no label can be wrong.

brackets: which closing brackets complete a nested expression (a Dyck language, as BIG-bench dyck_languages, in the form of code).
arithmetic: sums and differences of small whole numbers.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any

from models.gauntlet.own_data import CHOICES
from models.gauntlet.tasks import Item

TASKS = ("brackets", "arithmetic")
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_WORDS = ("a", "b", "c", "x", "y", "z", "n", "k", "data", "item", "name", "value", "1", "2", "3")


def _row(query: str, gold: str, wrong: list[str], place: int) -> dict[str, Any]:
    return {"query": query, "choices": [*wrong[:place], gold, *wrong[place:]], "gold": place}


def _atom(rng: random.Random) -> str:
    """A name, or a closed group: what may stand inside brackets without changing what must be closed."""
    word = rng.choice(_WORDS)
    if rng.random() < 0.35:
        opening = rng.choice("([{")
        return f"{opening}{word}, {rng.choice(_WORDS)}{_PAIRS[opening]}"
    return word


def _brackets(rng: random.Random, place: int) -> dict[str, Any]:
    """2 to 4 open brackets; all choices have as many closing brackets, so length tells nothing.

    At depth 2 it is enough to know which bracket was opened last, at depth 4 all of them have to be remembered.
    """
    openings = [rng.choice("([{") for _ in range(rng.randint(2, 4))]
    gold = "".join(_PAIRS[opening] for opening in reversed(openings))
    wrong = ["".join(order) for order in product(_PAIRS.values(), repeat=len(openings)) if "".join(order) != gold]
    text = f"{rng.choice(('x', 'y', 'result', 'value', 'data'))} = "
    for opening in openings:
        text += opening + "".join(f"{_atom(rng)}, " for _ in range(rng.randint(0, 2)))
    return _row(text + rng.choice(_WORDS), gold, rng.sample(wrong, CHOICES - 1), place)


def _arithmetic(rng: random.Random, place: int) -> dict[str, Any]:
    """Two numbers below 50, + or -, never below zero; wrong answers are the usual slips (one off, ten off, the other operation)."""
    left, right = rng.randint(1, 49), rng.randint(1, 49)
    operation = rng.choice("+-")
    if operation == "-" and left < right:
        left, right = right, left
    gold = left + right if operation == "+" else left - right
    other = abs(left - right) if operation == "+" else left + right
    slips = [n for n in dict.fromkeys((gold + 1, gold - 1, gold + 10, gold - 10, gold + 2, other, gold + 11)) if n >= 0 and n != gold]
    wrong = rng.sample(slips, CHOICES - 1)
    return _row(f"{left} {operation} {right} =", f" {gold}", [f" {n}" for n in wrong], place)


_MAKERS = {"brackets": _brackets, "arithmetic": _arithmetic}


def make_items(task: str, *, n: int, seed: int) -> list[Item]:
    """``n`` different items of ``task``; the right answer stands at each place equally often. ValueError when ``n`` cannot be reached."""
    if task not in _MAKERS:
        raise ValueError(f"Unknown symbolic task {task!r}. Known: {', '.join(TASKS)}.")
    rng = random.Random(f"{seed}:{task}")  # noqa: S311 - repeatable, not secret
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(20 * n + 100):
        if len(rows) == n:
            break
        row = _MAKERS[task](rng, len(rows) % CHOICES)
        rows.setdefault(row["query"], row)
    if len(rows) < n:
        raise ValueError(f"Symbolic task {task}: only {len(rows)} different items could be made, {n} were asked for.")
    return [Item(f"{task}-{seed}-{number:05d}", row) for number, row in enumerate(rows.values())]
