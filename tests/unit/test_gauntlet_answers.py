"""Which generated texts are right answers, by Foundry's rule and by the corrected one."""

from __future__ import annotations

import pytest

from models.gauntlet.answers import generation_is_right, normalise_answer
from models.gauntlet.averages import best_constant
from models.gauntlet.tasks import Item, Task

COT = {"do_normalization": False, "cot_delimiter": "The answer is ", "early_stopping": ("\n\n", "Question:")}


@pytest.mark.parametrize(
    ("output", "answers", "settings", "right"),
    [
        ("18 apples", ["1"], {"do_normalization": False}, True),  # Foundry's weakness, kept: it starts with an answer
        ("$18", ["18"], {"do_normalization": False}, False),
        ("  The Onion, of course", ["onion"], {}, True),
        ("red onion", ["onion"], {}, False),
        (
            "so 3. The answer is 12\n\nQ: The answer is 13",
            ["12"],
            {"do_normalization": False, "cot_delimiter": "The answer is ", "early_stopping": ("\n\n",)},
            True,
        ),
        ("The answer is 5. The answer is 12", ["5"], {"do_normalization": False, "cot_delimiter": "The answer is "}, False),
    ],
)
def test_generations_are_judged_by_foundrys_rule(output, answers, settings, right):
    assert generation_is_right(Task(label="g", kind="generation_task_with_answers", category="c", **settings), output, answers) is right


def test_normalisation_is_triviaqas():
    assert normalise_answer("The_Cat's  \u2018Pyjamas\u2019, an A-Team!") == "cat s pyjamas team"


@pytest.mark.parametrize(
    ("output", "answers", "settings", "exact", "fixed"),
    [
        ("1", ["18"], COT, False, False),
        ("18", ["1"], COT, True, False),
        ("$18", ["18"], COT, False, True),
        ("3 + 15 = 18. The answer is $18.00 per day", ["18"], COT, False, True),
        ("The answer is 1,800", ["1800"], COT, False, True),
        ("The answer is -3", ["3"], COT, False, False),
        ("The answer is 587", ["587"], COT, True, True),
        ("anything", ["(a"], {}, True, False),  # the alias normalises to nothing
        ("Paris, of course", ["Paris"], {}, True, False),
        ("the Paris.\nQuestion: next", ["Paris"], {}, True, True),
        ("", ["Paris"], {}, False, False),
        ("", [""], {}, True, False),
        ("seven", ["7"], {}, False, False),
        ("a.b", ["a"], {"do_normalization": False, "early_stopping": (".",)}, False, True),  # Foundry reads "." as any character
    ],
)
def test_both_rules_on_the_same_output(output, answers, settings, exact, fixed):
    def right(mode):
        return generation_is_right(Task(label="g", kind="generation_task_with_answers", category="c", mode=mode, **settings), output, answers)

    assert (right("exact"), right("fixed")) == (exact, fixed)


def test_the_best_constant_follows_the_rule_of_the_mode():
    rows = [Item(str(i), {"context": "x", "answer": a}) for i, a in enumerate(("1", "18", "$18", "7"))]

    def constant(mode):
        return best_constant(Task(label="g", kind="generation_task_with_answers", category="c", do_normalization=False, mode=mode), rows)

    assert (constant("exact"), constant("fixed")) == (0.5, 0.5)  # "18" starts with 1 and 18; "18" is 18 and $18
