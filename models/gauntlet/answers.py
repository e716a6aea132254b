"""When a generated text is a right answer: Foundry's rule (mode ``exact``) and the corrected one (mode ``fixed``).

Change here: what counts as an answer. Not here: how a text is generated (scoring.py), which modes there are (tasks.py).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from decimal import Decimal

from models.gauntlet.tasks import FIXED, Task

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")
_AROUND_NUMBER = "$€£% ."  # what may stand around a number in a gold answer without making it a text


def normalise_answer(text: str) -> str:
    """TriviaQA's normalisation: lower case, no punctuation, no articles, single spaces (triviaqa_evaluation.py)."""
    text = text.replace("_", " ").lower()
    text = "".join(" " if c in string.punctuation or c in "\u2018\u2019\u00b4" else c for c in text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_part(task: Task, output: str) -> str:
    """What is judged of an output: up to the first stop, after the last chain-of-thought delimiter; ``fixed``: the first line that is not blank."""
    if task.early_stopping:
        stops = map(re.escape, task.early_stopping) if task.mode == FIXED else task.early_stopping
        output = re.split("|".join(stops), output)[0]
    if task.cot_delimiter:
        output = output.split(task.cot_delimiter)[-1]
    return next((line for line in output.splitlines() if line.strip()), "") if task.mode == FIXED else output


def answer_key(task: Task, answer: str) -> str:
    """What two answers of mode ``fixed`` must share to be the same: a number's value, else the (normalised) text; "" is no answer."""
    bare = answer.strip(_AROUND_NUMBER + string.whitespace)
    if bare and _NUMBER.fullmatch(bare):
        return _value(bare)
    # An alias of punctuation alone has no normal form. It can still be given as it stands.
    return (normalise_answer(answer) or answer.strip()) if task.do_normalization else answer.strip()


def _value(number: str) -> str:
    return f"number {Decimal(number.replace(',', '')).normalize():f}"


def generation_is_right(task: Task, output: str, answers: Iterable[str]) -> bool:
    """``exact``: the cleaned output *starts with* a cleaned answer, Foundry's weaknesses included. ``fixed``: it *is* one.

    Where an answer is a number, ``fixed`` compares the first number of the output by value: "$18" and "18 apples" are 18, "1" is not.
    """
    part = answer_part(task, output)
    if task.mode != FIXED:
        clean = normalise_answer if task.do_normalization else str.strip
        return any(clean(part).startswith(clean(answer)) for answer in answers)
    wanted = {key for key in (answer_key(task, answer) for answer in answers) if key}
    number = _NUMBER.search(part)
    given = {answer_key(task, part)} | ({_value(number.group())} if number and any(key.startswith("number ") for key in wanted) else set())
    return bool(given & wanted)
