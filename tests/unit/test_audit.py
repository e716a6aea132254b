"""The benchmark audit: how well it finds the wrong keys people found in MMLU-Redux, and the sheet a person fills in."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jobs import audit
from jobs.contract import MoelineError
from models.gauntlet import audit as ranking

REDUX = Path(__file__).resolve().parents[3] / "shared" / "mmlu_redux"
N_MODELS = 14


def auroc(score, positive):
    score, positive = np.asarray(score), np.asarray(positive)
    return stats.mannwhitneyu(score[positive], score[~positive]).statistic / positive.sum() / (~positive).sum()


@pytest.mark.skipif(not REDUX.is_dir(), reason="the shared MMLU-Redux files are not beside this checkout")
def test_wrong_keys_of_mmlu_redux_are_found_better_than_by_disagreement():
    questions, wrong = [], []
    for file in sorted(REDUX.glob("*.csv")):
        for index, row in enumerate(csv.DictReader(io.StringIO(file.read_text(), newline=""))):
            models = list(row)[4 : 4 + N_MODELS]
            answers = {m: row[m].strip() if row[m].strip() in {"A", "B", "C", "D"} else "" for m in models}
            questions.append(ranking.Question(file.stem, f"{file.stem}/{index:03d}", "ABCD"[int(row["groundtruth_answer"])], answers, 4))
            wrong.append(row["error_type"] == "wrong_groundtruth")
    ranked = ranking.rank(questions)
    by_item = {s.item_id: s for s in ranked}
    suspicion = auroc([by_item[q.item_id].suspicion for q in questions], wrong)
    disagreement = auroc([sum(a != q.key for a in q.answers.values()) for q in questions], wrong)
    assert (len(questions), sum(wrong)) == (2800, 60)
    assert disagreement == pytest.approx(0.9587, abs=0.002)
    assert suspicion >= 0.963 and suspicion > disagreement
    found = {q.item_id for q, flag in zip(questions, wrong, strict=True) if flag}
    assert sum(s.item_id in found for s in ranked[:60]) >= 28, "of the first 60 read, about half have a wrong key"


def write(folder, n=60):
    """Long format: 5 models, item 7's key is wrong, everybody else misses other items now and then."""
    rng = np.random.default_rng(3)
    lines = ["item_id,task,model,prediction,gold,question"]
    for i in range(n):
        for m in range(5):
            answer = "B" if i == 7 else "A" if rng.random() < 0.85 else "CD"[m % 2]
            lines.append(f'"i{i}",t,m{m},{answer},A,"=cmd|{i}"')
    file = folder / "answers.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_the_sheet_is_judged_by_a_person_and_scores_are_shown_with_and_without(tmp_path):
    file = write(tmp_path)
    found = audit.audit([str(file)], out=str(tmp_path / "out"), top=10)
    first = found["items"][0]
    assert (first["item_id"], first["alternative"]) == ("i7", "B") and "5 of 5 models answer 'B'" in first["reasons"]
    rows = list(csv.DictReader(io.StringIO(Path(found["sheet"]).read_text("utf-8-sig"), newline="")))
    assert len(rows) == 10 and all(row["question"].startswith("'=cmd") for row in rows)
    rows[0]["verdict"], rows[1]["verdict"] = "wrong_key", "ok"
    back = tmp_path / "judged.csv"
    with back.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    judged = audit.audit([str(file)], verdicts=str(back))
    assert (judged["judged"], judged["rejected"]) == (2, 1)
    for s in judged["scores"]:
        assert (s["n"], s["n_without"]) == (60, 59)
        assert s["accuracy_without"] == pytest.approx(s["accuracy"] * 60 / 59), "nobody had the key of the rejected item"
    assert [i["key"] for i in judged["items"] if i["item_id"] == "i7"] == ["A"], "nothing is relabelled"
    assert "59" in audit.render(judged)


@pytest.mark.parametrize(("row", "verdict", "message"), [("first", "maybe", "unknown verdict 'maybe'"), ("rx", "ok", "no item of these answers")])
def test_a_verdict_that_cannot_be_meant_is_refused(tmp_path, row, verdict, message):
    file = write(tmp_path)
    real = audit.audit([str(file)])["items"][0]["row"]
    back = tmp_path / "judged.csv"
    back.write_text(f"row,verdict\n{real if row == 'first' else row},{verdict}\n")
    with pytest.raises(MoelineError, match=message):
        audit.audit([str(file)], verdicts=str(back))


def test_wide_and_long_files_say_the_same(tmp_path):
    long = write(tmp_path)
    by_item = {}
    for row in csv.DictReader(io.StringIO(long.read_text(), newline="")):
        by_item.setdefault(row["item_id"], {"item_id": row["item_id"], "task": "t", "gold": "A"})[row["model"]] = row["prediction"]
    wide = tmp_path / "wide.csv"
    with wide.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, next(iter(by_item.values())))
        writer.writeheader()
        writer.writerows(by_item.values())
    a, b = audit.audit([str(long)]), audit.audit([str(wide)])
    assert [(i["item_id"], i["suspicion"]) for i in a["items"]] == [(i["item_id"], i["suspicion"]) for i in b["items"]]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r@x", "a"])
def test_no_cell_begins_a_formula(text):
    safe = audit.spreadsheet_safe(text)
    assert safe == "a" if text == "a" else safe.startswith("'")


def test_files_that_are_no_answers_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MoelineError, match="Needed: item_id, gold"):
        audit.audit([str(tmp_path / "x.csv")])
    (tmp_path / "y.csv").write_text("item_id,model,prediction,gold\ni,m,A,A\n")
    with pytest.raises(MoelineError, match="at least 3"):
        audit.audit([str(tmp_path / "y.csv")])
