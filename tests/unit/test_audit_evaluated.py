"""The audit from end to end: folders of ``moeline evaluate`` in, a review sheet out, a person's verdicts back in, by the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import evaluation_suite
import outside_folders
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import audit, cli
from jobs.contract import MoelineError
from jobs.evaluating import command, writing
from models.gauntlet import audit as ranking

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Three random models, evaluated into folders of the same name."""
    place = tmp_path_factory.mktemp("evaluated")
    data = evaluation_suite.write(place / "data")
    for seed in (1, 2, 3):
        model = outside_folders.write(place / f"model-{seed}", seed=seed)
        command.run(command.Options(model=str(model), suite="small", data=data, out=place / f"seed-{seed}" / "out"), cache_folder=None)
    return [place / f"seed-{seed}" / "out" for seed in (1, 2, 3)]


def rows_of(folder):
    return pq.read_table(folder / writing.RESPONSES).to_pylist()


def test_evaluated_folders_become_a_sheet_and_verdicts_leave_items_out(evaluated, tmp_path, capsys):
    line = ["audit", "--home", str(tmp_path / "home"), "--responses", *map(str, evaluated)]
    assert cli.main([*line, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    right = {f"seed-{n}/out": {(r["benchmark"], r["item_id"]): r["correct"] for r in rows_of(folder)} for n, folder in enumerate(evaluated, 1)}
    assert found["n_items"] == 50 and {s["model"] for s in found["scores"]} == set(right)
    for s in found["scores"]:
        assert s["accuracy"] == pytest.approx(sum(right[s["model"]].values()) / 50)
        by_benchmark = {b["benchmark"]: b for b in s["benchmarks"]}
        assert {name: b["n"] for name, b in by_benchmark.items()} == {name: len(rows) for name, rows in evaluation_suite.ROWS.items()}
        for name, b in by_benchmark.items():
            assert b["accuracy"] == pytest.approx(sum(ok for (task, _), ok in right[s["model"]].items() if task == name) / b["n"])
    sheet = list(csv.DictReader(io.StringIO(Path(found["sheet"]).read_text("utf-8-sig"), newline="")))
    assert len(sheet) == 50 and all("[0] " in row["question"] and "[1] " in row["question"] for row in sheet if row["task"] in ("quiz", "pairs"))
    assert not any('{"prompt' in row["question"] for row in sheet), "what the model read, not the JSON it lies in"
    judged = {row["row"]: "wrong_key" for row in sheet if row["task"] == "quiz"}
    first = next(row for row in sheet if row["task"] == "said")
    judged[first["row"]] = "ok"
    with (tmp_path / "judged.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, sheet[0])
        writer.writeheader()
        writer.writerows({**row, "verdict": judged.get(row["row"], "")} for row in sheet)
    assert cli.main([*line, "--verdicts", str(tmp_path / "judged.csv"), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert (after["judged"], after["rejected"]) == (21, 20)
    for s in after["scores"]:
        assert s["n_without"] == 30
        b = {b["benchmark"]: b for b in s["benchmarks"]}
        assert b["quiz"]["accuracy_without"] is None and b["quiz"]["n_without"] == 0 and b["said"]["accuracy_without"] == b["said"]["accuracy"]
    assert cli.main([*line, "--verdicts", str(tmp_path / "judged.csv")]) == 0
    text = capsys.readouterr().out
    assert "By benchmark, where items were rejected:" in text and "none left  quiz, seed-2/out" in text and "copy, seed" not in text


def test_answers_that_nothing_judges_are_left_out_and_an_option_is_one_of_all_that_are_offered(evaluated, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(ranking, "rank", lambda questions: seen.update({(q.task, q.item_id): q for q in questions}) or [])
    for n, folder in enumerate(evaluated):
        rows = rows_of(folder)
        perplexity = {**rows[0], "benchmark": "lm_eval/wikitext", "mean_logprobs": [-2.0 - n], "correct": None, "prediction": -1, "gold": -1, "choices": [""]}
        (tmp_path / f"{n}").mkdir()
        pq.write_table(pa.Table.from_pylist([*rows, perplexity]), tmp_path / f"{n}" / writing.RESPONSES)
    found = audit.audit([str(tmp_path / f"{n}") for n in range(3)])
    assert len(seen) == 50 and {s["model"] for s in found["scores"]} == {"0", "1", "2"}
    assert {task: {q.n_options for (t, _), q in seen.items() if t == task} for task in evaluation_suite.ROWS} == {
        "quiz": {3}, "pairs": {2}, "copy": {0}, "said": {0},
    }  # fmt: skip


def test_a_text_that_reads_like_the_key_but_was_judged_wrong_is_another_answer():
    row = {
        "benchmark": "t",
        "item_id": "1",
        "choices": ["5"],
        "mean_logprobs": [],
        "prediction": -1,
        "gold": -1,
        "correct": False,
        "output": " 5",
        "item": "{}",
    }
    assert audit._of_response(row, "m")["prediction"] == "5 (judged wrong)"
    assert audit._of_response({**row, "correct": True}, "m")["prediction"] == "5"


def test_one_folder_twice_is_refused(evaluated):
    with pytest.raises(MoelineError, match="twice"):
        audit.audit([str(evaluated[0]), str(evaluated[0]), str(evaluated[1])])


def test_the_number_of_options_in_a_csv_counts(tmp_path):
    def suspicion(n_options):
        lines = ["item_id,model,prediction,gold,n_options"]
        lines += [f"i{i},m{m},{'B' if i == 3 and m < 2 else 'A'},A,{n_options}" for i in range(20) for m in range(3)]
        (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
        return audit.audit([str(tmp_path / "x.csv")])["items"][0]["suspicion"]

    assert suspicion(10) > suspicion(2) == suspicion("")  # agreeing on one of many wrong answers says more
    with pytest.raises(MoelineError, match="n_options is 'many'"):
        suspicion("many")
