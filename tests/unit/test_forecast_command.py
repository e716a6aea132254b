"""moeline forecast: anyone's CSV in, a table or JSON out, and an error that names line, column and remedy for whatever cannot be used."""

from __future__ import annotations

import json

import pytest

from jobs import cli, forecast_command
from jobs.contract import MoelineError
from models.scaling import LossLaw, accuracy_from_loss

LAW = LossLaw("chinchilla", E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
SIZES = [(n, times * 20 * n) for n in (5e7, 1e8, 2e8, 4e8) for times in (1, 2, 5, 10)]


def accuracy(loss, chance=0.25):
    return accuracy_from_loss(loss, chance=chance, level=0.0, slope=4.0, pivot=2.6)


def rows_of(sizes=SIZES):
    return [{"run": f"r{i}", "params": n, "tokens": d, "loss": LAW.predict(n, d), "quiz": accuracy(LAW.predict(n, d))} for i, (n, d) in enumerate(sizes)]


def write(tmp_path, rows):
    file = tmp_path / "runs.csv"
    file.write_text("\n".join([",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]) + "\n")
    return str(file)


def test_the_command_prints_a_table_and_the_same_numbers_as_json(tmp_path, capsys):
    file = write(tmp_path, rows_of())
    given = ["forecast", "fit", "--runs", file, "--target", "4B,800B", "--chance", "quiz=0.25", "--bootstraps", "50"]
    assert cli.main(given) == 0
    text = capsys.readouterr().out
    assert cli.main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    truth = LAW.predict(4e9, 8e11)
    assert found["loss"]["predicted"] == pytest.approx(truth, rel=0.01)
    assert found["loss"]["low"] <= truth <= found["loss"]["high"]
    assert found["tasks"]["quiz"]["low"] <= accuracy(truth) <= found["tasks"]["quiz"]["high"]
    assert found["compute_ratio"] == pytest.approx(100.0)
    for f in (found["loss"], found["tasks"]["quiz"]):
        for number in (f["predicted"], f["low"], f["high"], f["naive"]):
            assert f"{number:.4f}" in text
    assert "95 % interval" in text
    assert "naive" in text
    assert "chinchilla" in text
    assert found["notes"] == []


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["forecast", "fit", "--help"])
    text = capsys.readouterr().out
    assert "moeline forecast fit --runs ladder.csv --target 13B,5T" in text
    assert "active_params" in text
    assert "held out" in text


def test_mixtures_of_experts_need_and_use_the_active_size(tmp_path):
    family = LossLaw("moe", E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28, share=0.5)
    experts = [1, 16, 4, 8, 8, 1, 16, 4, 4, 8, 1, 16, 16, 4, 8, 1]
    rows = [{"params": n * e, "active_params": n, "tokens": d, "loss": family.predict(n, d, n * e)} for (n, d), e in zip(SIZES, experts, strict=True)]
    file = write(tmp_path, rows)
    with pytest.raises(MoelineError, match="needs --active N beside --target"):
        forecast_command.fit(file, "64B,1T")
    found = forecast_command.fit(file, "64B,1T", "4B", bootstraps=20)
    assert found["loss"]["details"]["chosen"][0] == "moe"
    assert found["loss"]["predicted"] == pytest.approx(family.predict(4e9, 1e12, 64e9), rel=0.01)
    with pytest.raises(MoelineError, match=r"at most the target's 6\.4e"):
        forecast_command.fit(file, "64B,1T", "65B")
    with pytest.raises(MoelineError, match="no column active_params"):
        forecast_command.fit(write(tmp_path, rows_of()), "64B,1T", "4B")


def changed(column, value, line=3):
    rows = rows_of()
    rows[line - 2][column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of()[:4], r"has 4 runs; a forecast needs at least 5, of at least 2 sizes"),
        ([{**row, "params": 1e8} for row in rows_of()], r"All 16 runs in .* have 1e\+08 parameters"),
        ([{k: v for k, v in row.items() if k != "loss"} for row in rows_of()], r"lacks the column loss; it has run, params, tokens, quiz"),
        (changed("loss", "nan"), r"line 3, column loss: 'nan' is not a number above 0"),
        (changed("loss", -2.5), r"line 3, column loss: '-2.5' is not a number above 0"),
        (changed("tokens", ""), r"line 3, column tokens: '' is not a number above 0"),
        (changed("params", "inf"), r"line 3, column params: 'inf'"),
        (changed("quiz", 47.0, line=5), r"line 5, column quiz: '47.0' is not an accuracy between 0 and 1 \(divide percentages by 100\)"),
        ([{**row, "active_params": row["params"] * 2} for row in rows_of()], r"line 2: active_params 1e\+08 is more than params 5e\+07"),
        ([{**row, "other.loss": 1.0} for row in rows_of()], r"column other.loss is the loss of a task, but there is no column other"),
    ],
    ids=["few", "one size", "no loss", "nan", "negative", "empty", "infinite", "percent", "swapped", "orphan"],
)
def test_what_cannot_be_used_is_named(tmp_path, rows, message):
    active = "1B" if "active_params" in rows[0] else None
    with pytest.raises(MoelineError, match=message):
        forecast_command.fit(write(tmp_path, rows), "4B,800B", active)


@pytest.mark.parametrize("target", ["4B", "4B,", "4B,-1", "x,y", "1,2,3", "nan,5"])
def test_a_target_that_is_none_is_refused(tmp_path, target):
    with pytest.raises(MoelineError, match="is not N,D"):
        forecast_command.fit(write(tmp_path, rows_of()), target)


def test_missing_and_ragged_files_are_named(tmp_path):
    with pytest.raises(MoelineError, match="Cannot read"):
        forecast_command.fit(str(tmp_path / "none.csv"), "4B,800B")
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("params,tokens,loss\n1e7,1e9,3.0\n1e7,1e9\n")
    with pytest.raises(MoelineError, match="more or fewer cells than the header's 3"):
        forecast_command.fit(str(ragged), "4B,800B")
    with pytest.raises(MoelineError, match="no task column 'quizz'"):
        forecast_command.fit(write(tmp_path, rows_of()), "4B,800B", chances=["quizz=0.25"])


def test_interpolation_and_distance_and_chance_are_noted(tmp_path):
    file = write(tmp_path, rows_of())
    inside = forecast_command.fit(file, "100M,2B", bootstraps=20)
    assert any("interpolation" in note for note in inside["notes"])
    assert any("Chance is taken as 0 for quiz" in note for note in inside["notes"])
    far = forecast_command.fit(file, "1T,1000T", chances=["quiz=0.25"], bootstraps=20)
    assert any("further than published forecasts" in note for note in far["notes"])


def test_a_recorded_forecast_is_judged_by_its_outcome():
    rows = [
        {"metric": "loss", "predicted": 3.0, "low": 2.9, "high": 3.1, "naive": 3.5, "outcome": 3.05, "decision": "go"},
        {"metric": "accuracy", "predicted": 0.5, "low": 0.4, "high": 0.6, "naive": 0.62, "outcome": 0.65, "decision": "go"},
        {"metric": "cost_usd", "predicted": 0.5, "low": 0.4, "high": 0.6, "naive": 0.7, "outcome": None, "decision": "go"},
    ]
    judged = [{**row, **forecast_command._judged(row)} for row in rows]
    assert [(row["inside"], row["beats_naive"]) for row in judged] == [(True, True), (False, False), (None, None)]
    text = forecast_command.render_shown({"run_id": "r", "recipe": "tiny", "content_hash": "abc", "metrics": judged})
    assert "OUTSIDE" in text
    assert "not yet known" in text


def test_an_unknown_run_lists_the_known_ones(tmp_path, capsys):
    assert cli.main(["forecast", "show", "nothing", "--home", str(tmp_path)]) == 1
    assert "'nothing' names 0 runs with a forecast. Known: none yet" in capsys.readouterr().err
