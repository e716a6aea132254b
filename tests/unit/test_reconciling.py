"""Nothing is free: killed processes, tries only Airflow knew, idle machines, storage. Processes are really killed."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import cli, focus
from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import delta, ledger, reconciling, report, shared_costs
from jobs.services.platform.uptime import Uptime, windows
from jobs.services.reconciling import Driver

AIRFLOW = {"dag_id": "build_model", "dag_run_id": "manual__1", "task_id": "train", "map_index": -1, "try_number": 2}
NOV = dt.datetime(2026, 11, 10, tzinfo=dt.UTC).timestamp()


def killed(env, *, beats=0.0):
    """A process that opens an attempt, works, and is killed by SIGKILL; returns the moment it was."""
    program = (
        "import time\nfrom jobs.environment import Environment\nfrom jobs.services import ledger\n"
        f"env = Environment.load('local', {str(env.home)!r})\nbegan = time.time()\n"
        f"names = {json.dumps({k: v for k, v in AIRFLOW.items()})}\n"
        "running = ledger.Running(env, ledger.Attempt('train', 'tiny', 'k' * 32, None, env.stage_resources('train'), began, **names))\n"
        "print(running.attempt.pid, running.attempt.attempt_id, flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPO, stdout=subprocess.PIPE, text=True)
    pid, attempt_id = process.stdout.readline().split()
    assert ledger.reconcile(env) == [], "it lives"
    time.sleep(beats)
    os.kill(int(pid), signal.SIGKILL)
    at = time.time()
    time.sleep(0.2)
    assert ledger.reconcile(env) == [attempt_id], "dead, though nobody has waited for it yet"
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    return at, int(pid)


def test_an_attempt_of_another_pod_lives_by_its_heartbeat(env, monkeypatch):
    """Its pid means nothing here: another machine has other processes, another container its own numbers."""
    running = ledger.Running(env, ledger.Attempt("train", "tiny", "k" * 32, None, env.stage_resources("train"), time.time()))
    monkeypatch.setattr(ledger.process_identity, "place", lambda: "another boot pid:[2]")
    monkeypatch.setattr(ledger.process_identity, "is_running", lambda pid, began: pytest.fail("asked about a pid of another place"))
    assert ledger.reconcile(env) == [], "charged as killed while it works, and its own rows would come second"
    running._stop.set()
    running._beat.join()
    silent = time.time() - ledger._SILENT_SECONDS - 1
    os.utime(ledger.journal(env) / f"{running.attempt.attempt_id}.json", (silent, silent))
    assert ledger.reconcile(env) == [running.attempt.attempt_id]


def as_airflow(start, end, **more):
    text = {"start_date": dt.datetime.fromtimestamp(start, dt.UTC).isoformat().replace("+00:00", "Z"),
            "end_date": None if end is None else dt.datetime.fromtimestamp(end, dt.UTC).isoformat().replace("+00:00", "Z")}  # fmt: skip
    return reconciling.ended_try({**AIRFLOW, "state": "failed", **text, **more}, "tiny")


def test_a_killed_process_is_charged_for_all_its_time_and_once(env):
    at, _ = killed(env, beats=0.5)
    (row,) = delta.rows(env, "costs")
    assert (row["x_Outcome"], row["x_Evidence"]) == ("killed", "heartbeat")
    assert at - 0.1 <= row["ChargePeriodEnd"].timestamp() <= at + 2.1, "the heartbeat it still owed is its"
    assert ledger.reconcile(env) == [] and focus.violations([focus.completed(row)]) == {}


def test_what_ray_saw_of_the_killed_process_is_added_as_a_correction(env):
    at, pid = killed(env)
    first = delta.rows(env, "costs")[0]
    started = first["ChargePeriodStart"].timestamp()
    others = [Driver(pid + 1, started, at + 900), Driver(pid, started - 5000, at + 900)]  # another process; an earlier one with the same pid
    assert reconciling.correct_killed(env, [], others) == []
    (added,) = reconciling.correct_killed(env, [], [*others, Driver(pid, started + 0.01, at + 40)])
    assert (added["x_Evidence"], added["x_CorrectsId"], added["x_Outcome"]) == ("ray", first["x_AttemptId"], "killed")
    (whole,) = report.attempts(env)
    assert whole["x_WallSeconds"] == pytest.approx(at + 40 - started, abs=0.01)
    assert whole["BilledCost"] == pytest.approx(env.prices.allocated(env.stage_resources("train"), at + 40 - started), rel=1e-4)
    assert reconciling.correct_killed(env, [], [Driver(pid, started + 0.01, at + 40)]) == [], "once"
    assert report.summary(env)["wasted_usd"] == pytest.approx(whole["BilledCost"])


def test_airflow_may_have_held_the_slot_even_longer(env):
    at, pid = killed(env)
    started = delta.rows(env, "costs")[0]["ChargePeriodStart"].timestamp()
    (added,) = reconciling.correct_killed(env, [as_airflow(started - 3, at + 300)], [Driver(pid, started, at + 40)])
    assert added["x_Evidence"] == "airflow" and added["ChargePeriodEnd"].timestamp() == pytest.approx(at + 300, abs=0.01)


def test_a_try_only_airflow_knows_is_charged_from_its_start_to_its_end(env):
    unseen = as_airflow(NOV, NOV + 90)
    (row,) = reconciling.charge_unseen(env, [unseen])
    assert (row["x_Outcome"], row["x_Evidence"], row["x_Recipe"], row["x_RunKey"], row["x_RunId"]) == ("killed", "airflow", "tiny", None, "manual__1")
    assert row["x_WallSeconds"] == 90 and row["BilledCost"] == pytest.approx(env.prices.allocated(env.stage_resources("train"), 90))
    assert reconciling.charge_unseen(env, [unseen]) == [] and len(delta.rows(env, "costs")) == 1
    assert focus.violations(focus.dataset(env)) == {}


@pytest.mark.parametrize(
    ("try_", "why"),
    [
        (as_airflow(NOV, NOV + 5, state="success"), "it found its work recorded"),
        (as_airflow(NOV, NOV + 5, task_id="approve"), "a person's answer holds no machine"),
        (as_airflow(NOV, NOV), "it never ran"),
    ],
)
def test_tries_that_held_nothing_cost_nothing(env, try_, why):
    assert reconciling.charge_unseen(env, [try_]) == [], why
    assert as_airflow(NOV, None) is None, "it still runs"


def test_a_try_that_is_running_is_not_charged_from_airflows_record(env):
    running = ledger.Running(env, ledger.Attempt("train", "tiny", "k", None, env.stage_resources("train"), time.time(), **AIRFLOW))
    assert reconciling.charge_unseen(env, [as_airflow(NOV, NOV + 5)]) == []
    running.close("succeeded")
    assert reconciling.charge_unseen(env, [as_airflow(NOV, NOV + 5)]) == [], "it wrote its own row"


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.floats(min_value=1e-6, max_value=1e9), min_size=1, max_size=30))
def test_shares_sum_to_exactly_one(weights):
    shares = shared_costs.exact_shares(weights)
    assert sum(shares.values()) == Decimal(1) and set(shares) == set(weights)
    assert all(abs(float(share) - weights[k] / sum(weights.values())) < 1e-7 for k, share in shares.items())


def attempted(env, key, start, end, cores=2.0, memory=4.0):
    one = ledger.Attempt("train", "tiny", key, None, replace(env.stage_resources("train"), cores=cores, memory_gib=memory), start)
    delta.append(env, "costs", [ledger.charge_row(env, one, end, "succeeded")])


def up(env, start, end):
    Uptime(env.home, start).beat(now=end)


def test_idle_time_is_what_nobody_held_and_is_borne_by_those_who_ran(env):
    up(env, NOV, NOV + 3600)
    attempted(env, "a" * 32, NOV + 100, NOV + 1000)  # the whole machine for 900 s
    attempted(env, "b" * 32, NOV + 2000, NOV + 2600, cores=1.0, memory=2.0)  # half of it for 600 s
    attempted(env, "c" * 32, NOV - 500, NOV - 100)  # before the platform was up
    rows = {r["AllocatedResourceId"]: r for r in shared_costs.charge_idle(env, now=NOV + 99_999)}
    assert set(rows) == {"a" * 32, "b" * 32}
    idle = 3600 - 900 - 300
    assert sum(Decimal(repr(r["x_WallSeconds"])) for r in rows.values()) == idle
    assert rows["a" * 32]["x_WallSeconds"] == pytest.approx(idle * 0.75) and rows["b" * 32]["x_WallSeconds"] == pytest.approx(idle * 0.25)
    assert sum(r["BilledCost"] for r in rows.values()) == pytest.approx(env.prices.allocated(env.resources["platform"], idle))
    assert focus.violations(focus.dataset(env)) == {}, "ratios sum to 1 there, too"
    assert shared_costs.charge_idle(env, now=NOV + 99_999) == [], "once"
    summary = report.summary(env)
    assert summary["attempts"] == 3 and summary["cost_by_phase"]["idle"] == pytest.approx(sum(r["BilledCost"] for r in rows.values()))


def test_a_platform_nobody_used_is_one_unallocated_charge_and_goes_on_where_it_was_charged(env):
    up(env, NOV, NOV + 600)
    (first,) = shared_costs.charge_idle(env, now=NOV + 300)
    assert (first["x_WallSeconds"], first["AllocatedResourceId"], first["x_Recipe"]) == (300, None, "none")
    (second,) = shared_costs.charge_idle(env, now=NOV + 99_999)
    assert (second["ChargePeriodStart"], second["x_WallSeconds"]) == (first["ChargePeriodEnd"], 300)
    assert focus.violations(focus.dataset(env)) == {}


def test_a_window_over_the_end_of_a_month_is_two_charges(env):
    month = dt.datetime(2026, 12, 1, tzinfo=dt.UTC).timestamp()
    up(env, month - 60, month + 30)
    rows = shared_costs.charge_idle(env, now=month + 99)
    assert [(r["x_WallSeconds"], r["BillingPeriodStart"].month) for r in rows] == [(60, 11), (30, 12)]


def test_a_machine_held_more_than_once_over_is_not_idle(env):
    up(env, NOV, NOV + 100)
    for key in "ab":
        attempted(env, key * 32, NOV, NOV + 100)
    assert shared_costs.charge_idle(env, now=NOV + 200) == []


def test_a_supervisor_that_died_leaves_the_time_it_was_last_seen(tmp_path):
    beat = Uptime(tmp_path, NOV)
    for after in (0.0, 2.0, 60.0, 61.0):
        beat.beat(now=NOV + after)
    (tmp_path / "uptime" / "9.json").write_text("{")  # cut short
    assert windows(tmp_path) == [(NOV, NOV + 60)]


def test_storage_is_charged_for_the_time_since_the_last_time(env):
    assert shared_costs.charge_storage(env, now=NOV) == [], "nothing was ever stored"
    attempted(env, "a" * 32, NOV, NOV + 10)
    env.artifacts.mkdir(parents=True)
    (env.artifacts / "model").write_bytes(bytes(1 << 20))
    (row,) = shared_costs.charge_storage(env, now=NOV + 7300 * 36)
    gib = shared_costs.stored_bytes(env) / (1 << 30)
    assert row["PricingQuantity"] == pytest.approx(gib * 0.1, rel=0.05) and row["BilledCost"] == pytest.approx(0.08 * row["PricingQuantity"])
    assert shared_costs.charge_storage(env, now=NOV + 7300 * 36) == [] and focus.violations(focus.dataset(env)) == {}
    assert shared_costs.charge_storage(replace(env, prices=replace(env.prices, storage_gib_month=None)), now=NOV * 2) == []


def test_one_command_says_what_it_charged_and_what_it_could_not_ask(env, capsys):
    up(env, time.time() - 30, time.time() - 5)
    attempted(env, "a" * 32, time.time() - 25, time.time() - 20)
    assert cli.main(["costs", "reconcile", "--home", str(env.home), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["idle"]["rows"] == 1 and found["idle"]["usd"] > 0 and found["storage"]["rows"] == 1
    assert len(found["missing"]) == 2 and "Airflow is not up" in found["missing"][0]


def test_a_correction_by_hand_brings_an_attempt_to_the_seconds_given(env):
    attempted(env, "a" * 32, NOV, NOV + 100)
    name = delta.rows(env, "costs")[0]["x_AttemptId"]
    reconciling.correct(env, name[:12], 40.0, "the clock jumped")
    reconciling.correct(env, name[:12], 50.0, "no, less")
    (one,) = report.attempts(env)
    assert one["x_WallSeconds"] == pytest.approx(50) and focus.violations(focus.dataset(env)) == {}
    for wrong, words in ((("zzz", 1.0, "x"), "names 0 attempts"), ((name, -1.0, "x"), "0 or more"), ((name, 1.0, " "), "a reason")):
        with pytest.raises(MoelineError, match=words):
            reconciling.correct(env, *wrong)
