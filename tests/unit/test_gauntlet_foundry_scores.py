"""What llm-foundry's data sets and metrics, and composer's wrapper, say about two models whose weights are written down: ours says the same.

The numbers come from tests/oracles/foundry_scores.py (its docstring says how), which also compares on real tasks.
"""

from __future__ import annotations

import json
from pathlib import Path

import evaluation_suite
import formula_model
import pyarrow.parquet as pq
import pytest

from jobs.evaluating import command
from models.gauntlet import calibration, tasks

FOUNDRY = json.loads((Path(__file__).parents[1] / "golden" / "foundry_scores.json").read_text())


@pytest.fixture(scope="module", params=formula_model.FAMILIES)
def evaluated(request, tmp_path_factory):
    """(what Foundry says, scores.json, responses by task, report) of one model."""
    place = tmp_path_factory.mktemp(request.param)
    folder, data = formula_model.write(place / "model", request.param), evaluation_suite.write(place / "data")
    result = command.run(command.Options(str(folder), str(data / "yamls" / "tasks_small.yaml"), data, place / "out"), cache_folder=None)
    rows = {label: [] for label in FOUNDRY[request.param]}
    for row in pq.read_table(place / "out" / "responses.parquet").to_pylist():
        rows[row["benchmark"]].append(row)
    return FOUNDRY[request.param], result, rows, (place / "out" / "report.md").read_text()


def test_log_probabilities_of_every_option_and_what_is_right(evaluated):
    foundry, _, rows, _ = evaluated
    for label in ("quiz", "copy", "pairs"):
        for wanted, got in zip(foundry[label]["items"], rows[label], strict=True):
            assert got["sum_logprobs"] == pytest.approx(wanted["sum"], abs=1e-4)
            assert got["mean_logprobs"] == pytest.approx(wanted["mean"], abs=1e-4)
            assert got["correct"] == wanted["correct"]


def test_generated_texts(evaluated):
    foundry, _, rows, _ = evaluated
    assert [(row["output"], row["correct"]) for row in rows["said"]] == [(item["text"], item["correct"]) for item in foundry["said"]["items"]]


def test_accuracies_and_the_calibration_error_of_language_modeling(evaluated):
    foundry, result, rows, report = evaluated
    assert {s["benchmark"]: s["accuracy"] for s in result["scores"]} == pytest.approx({label: of["accuracy"] for label, of in foundry.items()}, abs=1e-6)
    (summary,) = calibration.tasks(rows["copy"])
    assert summary.ece == pytest.approx(foundry["copy"]["calibration_error"], abs=1e-6)
    assert f"copy {summary.ece:.3f}" in report and "No calibration error: said (not defined for text)" in report


@pytest.mark.parametrize("family", formula_model.FAMILIES)
def test_shared_beginnings_change_none_of_it(family, tmp_path):
    """Foundry's numbers again, from keys and values that are computed once and continued."""
    import transformers

    from models.gauntlet.prompts import TransformersEncoder
    from models.gauntlet.scoring import Scorer, score
    from models.huggingface_cache import CachedCausalLM
    from models.kv_cache import KVCache

    folder, data = formula_model.write(tmp_path / "model", family), evaluation_suite.write(tmp_path / "data")
    model = CachedCausalLM(transformers.AutoModelForCausalLM.from_pretrained(folder).eval())
    encoder = TransformersEncoder(transformers.AutoTokenizer.from_pretrained(folder))
    scorer = Scorer(model, encoder, max_seq_len=formula_model.POSITIONS, cache_type=KVCache)
    for benchmark in tasks.load_foundry(data / "yamls" / "tasks_small.yaml", data / "local_data"):
        for wanted, got in zip(FOUNDRY[family][benchmark.task.label]["items"], score(benchmark, scorer), strict=True):
            assert got.correct == wanted["correct"] and got.output == wanted.get("text", got.output)
            assert got.sum_logprobs == pytest.approx(wanted.get("sum", []), abs=1e-4)
