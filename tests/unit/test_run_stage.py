"""run_stage on a small stage of its own: identity, checks, crash safety, cost rows. No Spark, no Ray."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest

from jobs import recipes, run
from jobs.contract import CheckFailed, MoelineError, StageOutput
from jobs.environment import REPO
from jobs.services import delta, ledger, report, results

RECIPE = recipes.load("smoke")


def fake_train(rows=None, before=lambda: None, revision=1):
    """A stage with the name and tables of ``train`` that needs no engine."""
    calls = []

    def execute(config, inputs, tools):
        calls.append(tools.run_key)
        before()
        row = {"uri": "u", "sha256": "s", "step": 1, "tokens": 10, "loss": 2.0, "held_out_loss": 2.0, "config": "{}", "final": True, "mlflow_run_id": None}
        return StageOutput({"checkpoints": pa.Table.from_pylist(rows or [row])}, {"tokens": 10, "flops": 1e6})

    return SimpleNamespace(__name__="jobs.stages.train", ENGINE="arrow", READS={}, WRITES=("checkpoints",), REVISION=revision, run=execute, calls=calls)


@pytest.fixture
def stage(monkeypatch):
    def use(module):
        monkeypatch.setattr(run, "stage_module", lambda name: module)
        return module

    return use


def outcomes(env):
    return [c["x_Outcome"] for c in report.attempts(env)]


def test_the_same_work_is_done_once_and_costs_once(env, stage):
    module = stage(fake_train())
    first = run.run_stage(env, "train", RECIPE)
    second = run.run_stage(env, "train", RECIPE)
    assert (first.reused, second.reused) == (False, True)
    assert first.outputs == second.outputs == {"checkpoints": "checkpoints@1"}
    assert len(module.calls) == 1
    assert outcomes(env) == ["succeeded"]


def test_a_result_recorded_under_an_older_name_of_its_corpus_is_found_again(env, stage):
    stage(fake_train())
    result = run.run_stage(env, "train", RECIPE)
    results.record(env, replace(result, config_hash="0" * 16))
    assert results.newest(env, "train", config=RECIPE.config_hash("train")) is None
    assert run.run_stage(env, "train", RECIPE).reused
    assert results.newest(env, "train", config=RECIPE.config_hash("train")).outputs == result.outputs


def test_the_same_work_asked_for_at_once_is_done_once(env, stage):
    module = stage(fake_train(before=lambda: time.sleep(0.3)))
    threads = [threading.Thread(target=run.run_stage, args=(env, "train", RECIPE)) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(module.calls) == 1


def test_a_new_revision_is_new_work(env, stage):
    stage(fake_train())
    first = run.run_stage(env, "train", RECIPE)
    stage(fake_train(revision=2))
    second = run.run_stage(env, "train", RECIPE)
    assert first.run_key != second.run_key
    rows = delta.dataset(env, second.table("checkpoints")).to_table().to_pylist()
    assert sorted(r["run_key"] for r in rows) == sorted([first.run_key, second.run_key])


def test_refused_rows_are_kept_aside_priced_and_not_published(env, stage):
    bad = {"uri": "u", "sha256": "s", "step": 0, "tokens": 10, "loss": 2.0, "held_out_loss": 2.0, "config": "{}", "final": True, "mlflow_run_id": None}
    stage(fake_train(rows=[bad]))
    with pytest.raises(CheckFailed, match=r"ExpectColumnValuesToBeBetween\(step\).*1 rows.*_refused/train/"):
        run.run_stage(env, "train", RECIPE)
    assert delta.latest(env, "checkpoints") is None
    assert len(list((env.warehouse / "_refused/train").rglob("*.parquet"))) == 1
    failed = [c for c in delta.rows(env, "checks") if not c["passed"]]
    assert [(c["rule"], c["failed_rows"]) for c in failed] == [("ExpectColumnValuesToBeBetween(step)", 1)]
    assert failed[0]["where_rejected"].startswith("_refused/train/")
    assert outcomes(env) == ["failed"]


def test_what_a_stage_noticed_is_a_stored_warning_and_refuses_nothing(env, stage):
    module = stage(fake_train())
    execute = module.run

    def notice(config, inputs, tools):
        output = execute(config, inputs, tools)
        output.noticed["checkpoints", "EveryRuleRejectsSomething"] = {"rules_without_rejection": ["a.b"]}
        return output

    module.run = notice
    result = run.run_stage(env, "train", RECIPE)
    sentence = 'checkpoints: EveryRuleRejectsSomething: observed {"rules_without_rejection": ["a.b"]}'
    assert (result.metrics["check_warnings"], result.metrics["checks_failed"]) == ([sentence], 0)
    stored = [row for row in delta.rows(env, "checks") if row["rule"] == "EveryRuleRejectsSomething"]
    assert [(row["severity"], row["passed"], row["stage"]) for row in stored] == [("warning", False, "train")]


def test_what_a_stage_refuses_itself_is_a_stored_error_and_publishes_nothing(env, stage):
    module = stage(fake_train())
    execute = module.run

    def refuse(config, inputs, tools):
        output = execute(config, inputs, tools)
        output.refused["checkpoints", "SomethingIsKept"] = {"documents": 100}
        return output

    module.run = refuse
    with pytest.raises(CheckFailed, match=r'1 data checks of stage train failed; nothing was published.\n  checkpoints: SomethingIsKept: .*"documents": 100'):
        run.run_stage(env, "train", RECIPE)
    assert delta.latest(env, "checkpoints") is None and len(list((env.warehouse / "_refused/train").rglob("*.parquet"))) == 1
    stored = [row for row in delta.rows(env, "checks") if row["rule"] == "SomethingIsKept"]
    assert [(row["severity"], row["passed"], row["stage"]) for row in stored] == [("error", False, "train")]


def test_a_stage_that_breaks_is_priced_and_leaves_nothing(env, stage):
    def boom():
        raise RuntimeError("boom\nsecond line")

    stage(fake_train(before=boom))
    with pytest.raises(RuntimeError):
        run.run_stage(env, "train", RECIPE)
    charge = report.attempts(env)[0]
    assert (charge["x_Outcome"], charge["x_Error"]) == ("failed", "RuntimeError: boom")
    assert charge["BilledCost"] > 0
    assert list((env.warehouse / "_staging").iterdir()) == []
    assert list((env.home / "attempts").iterdir()) == []


def test_missing_and_unknown_tables_of_a_stage_are_named(env, stage):
    module = fake_train()
    module.run = lambda config, inputs, tools: StageOutput({"scores": pa.table({})})
    stage(module)
    with pytest.raises(MoelineError, match=r"declares \['checkpoints'\] and returned \['scores'\]"):
        run.run_stage(env, "train", RECIPE)


def test_an_input_nobody_wrote_names_the_stage_to_run(env, stage):
    module = fake_train()
    module.READS = {"sequences": "all"}
    stage(module)
    with pytest.raises(MoelineError, match="moeline stage pack"):
        run.run_stage(env, "train", RECIPE)


def test_a_preparation_stage_needs_a_day(env):
    with pytest.raises(MoelineError, match="--interval"):
        run.run_stage(env, "ingest", RECIPE)


def test_a_killed_attempt_is_charged_until_its_last_heartbeat(env):
    program = (
        "import os, signal, time\n"
        "from jobs.environment import Environment\n"
        "from jobs.services import ledger\n"
        f"env = Environment.load('local', {str(env.home)!r})\n"
        "ledger.Running(env, ledger.Attempt('train', 'tiny', 'k', None, env.stage_resources('train'), time.time() - 30, dag_id='d', try_number=2))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(ledger.reconcile(env)) == 1
    assert ledger.reconcile(env) == [], "charged once"
    (charge,) = report.attempts(env)
    assert (charge["x_Outcome"], charge["x_TaskTry"], charge["x_DagId"]) == ("killed", 2, "d")
    assert 29 < charge["x_WallSeconds"] < 60
    assert charge["BilledCost"] == pytest.approx(env.prices.allocated(env.stage_resources("train"), charge["x_WallSeconds"]))


def test_a_running_attempt_is_not_charged_by_others(env):
    running = ledger.Running(env, ledger.Attempt("train", "tiny", "k", None, env.stage_resources("train"), time.time()))
    assert ledger.reconcile(env) == []
    running.close("succeeded")
    assert outcomes(env) == ["succeeded"]


def test_a_crash_between_commit_and_record_is_repaired_by_the_retry(env, stage, monkeypatch):
    stage(fake_train())
    with monkeypatch.context() as patched:
        patched.setattr(results, "record", lambda *a: (_ for _ in ()).throw(OSError("disk gone")))
        with pytest.raises(OSError, match="disk gone"):
            run.run_stage(env, "train", RECIPE)
    assert results.of_stage(env, "train") == []
    retried = run.run_stage(env, "train", RECIPE)
    rows = delta.dataset(env, retried.table("checkpoints")).to_table().to_pylist()
    assert len(rows) == 1, "the retry replaced the rows of the attempt that died"


def test_the_process_prints_its_result_last_and_refuses_bad_input(env):
    base = {**os.environ, "MOELINE_HOME": str(env.home)}
    for arguments, message in (
        (["nonsense"], "The stages are"), (["ingest"], "--interval"), (["ingest", "--interval", "2026-11-01"], "Nothing has landed"),
        (["train", "--recipe", "huge"], "Known recipes"), (["train", "--inputs", '{"sequences": "x"}'], "name@number"),
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "jobs.run", *arguments], cwd=REPO, env=base, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_metrics_are_json(env, stage):
    stage(fake_train())
    assert json.loads(run.run_stage(env, "train", RECIPE).to_json())["metrics"]["tokens"] == 10


def test_rows_are_staged_in_groups_a_reader_can_skip(env, stage):
    import pyarrow.parquet as pq

    row = {"uri": "u", "sha256": "s", "tokens": 10, "loss": 2.0, "held_out_loss": 2.0, "config": "{}", "final": True, "mlflow_run_id": None}
    stage(fake_train(rows=[{**row, "step": n + 1} for n in range(4500)]))
    run.run_stage(env, "train", RECIPE)
    (file,) = (env.warehouse / "checkpoints").rglob("*.parquet")
    found = pq.ParquetFile(file).metadata
    groups = [found.row_group(i) for i in range(found.num_row_groups)]
    assert [g.num_rows for g in groups] == [2000, 2000, 500]
    step = found.schema.to_arrow_schema().get_field_index("step")
    assert [(g.column(step).statistics.min, g.column(step).statistics.max) for g in groups] == [(1, 2000), (2001, 4000), (4001, 4500)]
