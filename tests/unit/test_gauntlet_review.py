"""Every verdict has a case that earns it and a near one that does not."""

from __future__ import annotations

import pytest

from models.gauntlet.review import followed_rules, judge, margin, second_choice, sure_lead


def choice(means, gold=0, choices=("alpha", "beta", "gamma", "delta"), kind="multiple_choice"):
    prediction = max(range(len(means)), key=lambda i: (means[i], -i))
    return {
        "kind": kind, "choices": list(choices), "mean_logprobs": list(means), "gold": gold, "prediction": prediction, "output": choices[prediction],
        "correct": prediction == gold,
    }  # fmt: skip


def free(output, answers, correct, kind="generation_task_with_answers"):
    return {"kind": kind, "choices": list(answers), "mean_logprobs": [], "gold": -1, "prediction": -1, "output": output, "correct": correct}


def verdict(response, rules=(), contaminated=False):
    return judge(response, rules=rules, contaminated=contaminated, near=0.1)


def test_a_clear_lead_is_proper_and_a_small_one_lucky():
    assert verdict(choice([-1.0, -1.2, -3, -3])).verdict == "proper"
    found = verdict(choice([-1.0, -1.05, -3, -3]))
    assert found.verdict == "lucky" and found.margin == pytest.approx(0.05) and "0.050" in found.evidence


def test_a_small_gap_is_a_near_miss_and_a_large_one_wrong():
    assert verdict(choice([-1.05, -1.0, -3, -3])).verdict == "near_miss"
    found = verdict(choice([-2.0, -1.0, -3, -3]))
    assert found.verdict == "wrong" and found.margin == pytest.approx(-1.0) and margin(choice([-2.0, -1.0, -3, -3])) == pytest.approx(-1.0)


def test_right_on_an_item_that_training_holds_is_contaminated_and_wrong_stays_wrong():
    assert verdict(choice([-1.0, -2, -3, -3]), contaminated=True).verdict == "contaminated"
    assert verdict(choice([-2.0, -1, -3, -3]), contaminated=True).verdict == "wrong"


def test_a_model_that_always_says_the_same_is_lucky_or_constant():
    letters = ("A", "B", "C", "D")
    task = [choice([-3, -3, -1, -3], gold=i % 4, choices=letters) for i in range(40)]
    rules = followed_rules(task)
    assert rules[0].agreement == 1.0 and rules[0].is_constant
    verdicts = [verdict(r, rules) for r in task]
    assert {(r["correct"], v.verdict) for r, v in zip(task, verdicts, strict=True)} == {(True, "lucky"), (False, "constant_answer")}
    assert "100%" in verdicts[0].evidence and "'C'" in verdicts[0].evidence


def test_always_the_longest_option_is_not_proper():
    sizes = (("a", "bb", "cccc", "d"), ("aaaaa", "b", "c", "d"), ("a", "bbbb", "cc", "d"))
    task = []
    for i in range(60):
        options = sizes[i % 3]
        longest = max(range(4), key=lambda k: len(options[k]))
        task.append(choice([-1.0 if k == longest else -3.0 for k in range(4)], gold=i % 4, choices=tuple(f"{o}{i}" for o in options)))
    rules = followed_rules(task)
    assert [r.name for r in rules] == ["always the longest option"]
    assert {verdict(r, rules).verdict for r in task if r["correct"]} == {"lucky"}
    assert {verdict(r, rules).verdict for r in task if not r["correct"]} == {"wrong"}  # not the same answer, so no constant answer


def test_varied_answers_follow_no_rule():
    task = [choice([-1.0 if k == (i * 7 + i // 3) % 4 else -2.0 for k in range(4)], gold=0, choices=tuple(f"{c}{i}" for c in "abcd")) for i in range(60)]
    assert followed_rules(task) == []
    assert followed_rules(task[:5]) == []  # too few to tell


@pytest.mark.parametrize("output", ["", "  \n", "....", "\n\n---"])
def test_an_output_without_a_word_or_number_is_a_format_failure(output):
    assert verdict(free(output, ["12"], False)).verdict == "format_failure"


def test_brackets_are_an_answer_where_brackets_are_asked_for():
    assert verdict(free("} ]", ["} )"], False, kind="language_modeling")).verdict == "wrong"


def test_free_text_that_is_almost_right_is_a_near_miss():
    assert verdict(free("Signs!", ["signs"], False, kind="language_modeling")).verdict == "near_miss"
    assert verdict(free("It is an onion, I think", ["Onion"], False)).verdict == "near_miss"
    assert verdict(free("carrot", ["Onion"], False)).verdict == "wrong"
    assert verdict(free("Onion", ["Onion"], True)).verdict == "proper"


def test_the_evidence_is_data_not_only_a_sentence():
    found = verdict(choice([-2.0, -1.0, -1.5, -3]), contaminated=True)
    assert (found.second_choice, found.lead, found.format, found.contaminated, found.pattern) == (2, 0.5, "ok", True, None)
    empty = verdict(free(" \n", ["12"], False))
    assert (empty.second_choice, empty.lead, empty.format) == (None, None, "empty")
    assert verdict(free("....", ["12"], False)).format == "no_words"


def sure_task(wrong):
    """60 answers of different leads, right where the lead is large; ``wrong`` are added."""
    right = [choice([-1.0, -1.0 - 0.1 * i, -9, -9], choices=[f"{c}{i}" for c in "abcd"]) for i in range(1, 41)]
    guesses = [choice([-1.0, -1.01, -9, -9], gold=i % 4, choices=[f"{c}{i}x" for c in "abcd"]) for i in range(20)]
    return [*right, *guesses, *wrong]


def test_a_key_is_suspect_only_where_the_model_is_sure_and_otherwise_right():
    odd = choice([-4.5, -1.0, -9, -9], gold=0, choices=("k", "l", "m", "n"))
    task = sure_task([odd])
    sure = sure_lead(task)
    share = [r["correct"] for r in task if second_choice(r)[1] >= sure]
    assert sum(share) / len(share) >= 0.9 and len(share) >= 20
    found = judge(odd, rules=[], contaminated=False, near=0.1, sure=sure)
    assert found.key_suspect and found.verdict == "wrong" and "the key may be wrong" in found.evidence
    hesitant = judge(choice([-1.02, -1.0, -9, -9], gold=0), rules=[], contaminated=False, near=0.1, sure=sure)
    assert not hesitant.key_suspect and hesitant.lead < 0.1


def test_a_model_that_is_never_reliably_right_suspects_no_key():
    task = [choice([-1.0, -1.0 - 0.1 * i, -9, -9], gold=i % 4, choices=[f"{c}{i}" for c in "abcd"]) for i in range(60)]
    assert sure_lead(task) is None and sure_lead(sure_task([])[:10]) is None
    assert not any(judge(r, rules=[], contaminated=False, near=0.1, sure=None).key_suspect for r in task)
