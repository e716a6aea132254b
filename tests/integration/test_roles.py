"""Roles on a running Airflow: what each may see and do through its API and on our pages; a budget is not raised by who may not spend it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from people import person
from running_platform import until
from whole_job import RECIPE, WholeJob

from jobs.services import accounts
from jobs.services.accounts import ROLES
from jobs.services.airflow import AirflowClient

pytestmark = pytest.mark.integration
RUN, BUILD = "roles-are-tested", "/api/v2/dags/build_model"
TASKS = f"{BUILD}/dagRuns/{RUN}/taskInstances"


def who(clients: dict[str, Any], method: str, path: str, body: Any = None) -> list[str]:
    """The roles that are not refused. Asked with the least role first, so that what one does does not stand in another's way."""
    return [role for role in ROLES if clients[role].request(method, path, json=body).status_code != 403]


def test_every_role_may_what_it_says_and_no_more(platform) -> None:
    with AirflowClient(platform) as owner:
        owner.wait_for_dag("build_model")
    with ExitStack() as stack:
        clients = {role: stack.enter_context(person(platform, role)) for role in ROLES}
        for path in (BUILD, "/api/v2/dags/~/dagRuns", "/costs/page", "/costs/api/runs", "/costs/api/trainings"):
            assert [clients[role].get(path).status_code for role in ROLES] == [200] * 4, path
        assert who(clients, "PATCH", f"{BUILD}?update_mask=is_paused", {"is_paused": True}) == ["runner", "approver", "admin"]
        assert who(clients, "POST", f"{BUILD}/dagRuns", {"dag_run_id": RUN, "logical_date": None}) == ["runner", "approver", "admin"]
        xcom = {"key": "return_value", "value": {"metrics": {"decision": "go"}}, "map_index": -1}
        assert who(clients, "POST", f"{TASKS}/forecast/xcomEntries", xcom) == ["admin"]
        assert who(clients, "PATCH", f"{TASKS}/approve/-1/hitlDetails", {"chosen_options": ["Approve"], "params_input": {}}) == ["approver", "admin"]
        assert who(clients, "DELETE", f"{BUILD}/dagRuns/{RUN}") == ["admin"]
        for path, body in (("/api/v2/variables", {"key": "x", "value": "y"}), ("/api/v2/pools", {"name": "x", "slots": 1}), ("/api/v2/connections", {})):
            assert who(clients, "POST", path, body) == ["admin"], path
        for path in ("/api/v2/variables", "/api/v2/connections"):
            assert who(clients, "GET", path) == ["admin"], path
        assert clients["admin"].delete("/api/v2/variables/x").status_code == clients["admin"].delete("/api/v2/pools/x").status_code == 204


def test_an_account_taken_away_is_out_at_once(platform) -> None:
    file = accounts.file_of(platform.home)
    with person(platform, "admin") as client:
        assert client.get("/api/v2/variables").status_code == 200
        accounts.change_role(file, "an-admin", "viewer")
        assert client.get("/api/v2/variables").status_code == 403
        assert client.get("/costs/api/runs").status_code == 200
        password = accounts.new_password(file, "an-admin")
        assert {client.get(path).status_code for path in ("/costs/api/runs", "/api/v2/dags")} <= {401, 403}
        assert client.post("/auth/token", json={"username": "an-admin", "password": password + "x"}).status_code == 401
        assert client.post("/auth/token/cli", json={"username": "an-admin", "password": password}).status_code == 201
        assert client.get("/auth/token").status_code == 403, "nobody gets a token without a password"
    assert client.is_closed


def test_a_runner_cannot_spend_more_than_the_recipe_says(whole_job: WholeJob) -> None:
    """Neither by asking for a larger budget nor by declaring the question answered."""
    env = whole_job.env
    with person(env, "runner") as runner, AirflowClient(env) as owner:
        owner.unpause("build_model")
        try:
            asked = runner.post(f"{BUILD}/dagRuns", json={"logical_date": None, "conf": {"recipe": RECIPE, "budget_usd": 1000.0}})
            assert asked.status_code == 200, asked.text
            run = asked.json()["dag_run_id"]

            def state(task: str) -> str | None:
                return next((t["state"] for t in owner.task_instances("build_model", run) if t["task_id"] == task), None)

            until(lambda: state("approve") == "awaiting_input", seconds=180, what="a question")
            question = next(q for q in owner.awaiting_input() if q["task_instance"]["dag_run_id"] == run)
            assert question["subject"] == f"Budget raised by a-runner: train {RECIPE} anyway?"
            done = runner.patch(f"{BUILD}/dagRuns/{run}/taskInstances/approve", json={"new_state": "success"})
            assert done.status_code == 200, done.text
            until(lambda: owner.dag_run("build_model", run)["state"] in ("failed", "success"), seconds=120, what="the run's end")
            assert (state("approve"), state("train"), state("register")) == ("success", "failed", "upstream_failed")
            assert "nobody approved" in owner.log("build_model", run, "train", 1)
        finally:
            owner.pause("build_model")
