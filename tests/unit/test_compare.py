"""moeline compare on files as moeline evaluate writes them, and what is said about one model."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, compare
from jobs.contract import MoelineError
from models.gauntlet import calibration


def responses(rng, quality, prompt="h"):
    rows = []
    for i in range(200):
        means = rng.normal(size=4)
        means[i % 4] += quality
        rows.append({
            "benchmark": f"t{i % 2}", "category": f"c{i % 2}", "item_id": f"i{i}", "kind": "multiple_choice", "prompt_hash": f"{prompt}{i}",
            "choices": list("ABCD"),
            "sum_logprobs": means.tolist(), "mean_logprobs": means.tolist(), "output": "ABCD"[means.argmax()], "prediction": int(means.argmax()), "gold": i % 4,
            "correct": bool(means.argmax() == i % 4), "item": json.dumps({"prompt": f"q{i}", "prompt_chars": 2, "contaminated": i < 40, "doc_id": None}),
        })  # fmt: skip
    return rows


@pytest.fixture
def folders(tmp_path):
    for name, quality, prompt in (("weak", 0.0, "h"), ("strong", 3.0, "h"), ("other", 3.0, "x")):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(responses(np.random.default_rng(1), quality, prompt)), tmp_path / name / "responses.parquet")
    return tmp_path


def test_two_folders_are_compared_on_the_command_line(folders, capsys):
    weak, strong = str(folders / "weak"), str(folders / "strong")
    assert cli.main(["compare", weak, strong, "--json", "--home", str(folders / "home")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_items"], found["n_contaminated"], found["left_out"]) == (200, 40, [])
    assert {part: next(e["n"] for e in effects if e["level"] == "average") for part, effects in found["differences"].items()} == {
        "all": 200,
        "clean": 160,
        "contaminated": 40,
    }
    average = next(e for e in found["differences"]["all"] if e["level"] == "average")
    assert average["difference"] > 0.3 and average["p_adjusted"] < 0.05 and average["low"] > 0.2
    assert [t["above_constant"] for t in found["a"]["tasks"]] == [False, False]
    assert cli.main(["compare", weak, strong, "--home", str(folders / "home")]) == 0
    text = capsys.readouterr().out
    assert "NOT above it" in text and "Only clean items" in text and "200 items compared" in text


def test_other_prompts_are_not_compared_silently(folders, env):
    with pytest.raises(MoelineError, match=r"200 items were asked with other prompt tokens.*--by-text"):
        compare.compare(env, str(folders / "weak"), str(folders / "other"))
    assert compare.compare(env, str(folders / "weak"), str(folders / "other"), by_text=True)["n_items"] == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [("champion", "no champion"), ("v3", "none yet"), ("nobody", "No model is called"), ("abcdef12", "no evaluated checkpoint"), ("./x", "not there")],
)
def test_a_model_that_is_not_there_is_named(env, name, message):
    with pytest.raises(MoelineError, match=message):
        compare.compare(env, name, name)


def test_calibration_error_is_composers():
    # ten answers in the bucket .9 to 1 (middle .95), seven right; five in .3 to .4 (middle .35), two right
    found = calibration.expected_calibration_error([0.93] * 10 + [0.31] * 5, [True] * 7 + [False] * 3 + [True] * 2 + [False] * 3)
    assert found == pytest.approx((10 * abs(0.7 - 0.95) + 5 * abs(0.4 - 0.35)) / 15)
    assert calibration.expected_calibration_error([1.0], [True]) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="within 0 and 1"):
        calibration.expected_calibration_error([1.2], [True])


def test_confidence_is_that_of_the_answer_that_was_given():
    chosen = {"mean_logprobs": [-1.0, -2.0, -2.0], "sum_logprobs": [-9.0, -2.0, -2.0], "prediction": 0}
    assert calibration.confidence(chosen) == pytest.approx(np.exp(-1) / (np.exp(-1) + 2 * np.exp(-2)))
    assert calibration.confidence({"mean_logprobs": [-5.0], "prediction": -1, "confidence": 0.8}) == 0.8
    generated, old = {"mean_logprobs": [], "sum_logprobs": []}, {"mean_logprobs": [-5.0], "sum_logprobs": [-5.0]}
    for response, reason in ((generated, "not defined for text"), (old, "not stored then")):
        row = response | {"benchmark": "t", "category": "c", "prediction": -1, "gold": -1, "correct": False, "confidence": None}
        (summary,) = calibration.tasks([row])
        assert (summary.ece, summary.without_ece) == (None, reason)


def test_errors_of_means_over_subsets_are_those_of_resampling():
    rng = np.random.default_rng(4)
    answers = [("a", bool(x)) for x in rng.random(40) < 0.3] + [("b", bool(x)) for x in rng.random(160) < 0.8]
    a, b = (np.array([right for subset, right in answers if subset == s]) for s in "ab")
    means = (rng.choice(a, (20_000, 40)).mean(1) + rng.choice(b, (20_000, 160)).mean(1)) / 2
    accuracy, stderr = calibration.accuracy_with_error(answers)
    assert (accuracy, stderr) == (pytest.approx((a.mean() + b.mean()) / 2), pytest.approx(means.std(), rel=0.03))
