"""The real platform: started, asked, hurt, started again. The platform itself is shared (tests/running_platform.py)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from running_platform import family, mlflow_sign_in, until

from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import platform as local
from jobs.services.airflow import AirflowClient
from jobs.services.platform import record

pytestmark = pytest.mark.integration

SERVICES = {
    "postgres", "airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "mlflow", "spark-connect", "ray-head",
    "checks",
}  # fmt: skip


def test_every_service_is_healthy(platform):
    found = local.status(platform)
    assert set(found["services"]) == SERVICES
    assert found["healthy"], found["services"]
    assert all(line.split()[0] in local.render_status(found) for line in SERVICES)


def test_taken_port_is_moved_and_announced(platform):
    usual = int(platform.services["mlflow_port"])  # held by the fixture while the platform started
    uri = platform.platform["mlflow_uri"]
    assert not uri.endswith(f":{usual}")
    assert httpx.get(f"{uri}/health", trust_env=False).status_code == 200


def test_everything_listens_on_loopback_only(platform):
    listening = {}
    for name, entry in record.read_record(platform.home)["services"].items():
        for process in family(entry) if entry["pid"] else []:
            with contextlib.suppress(psutil.Error):
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        listening.setdefault(name, set()).add(connection.laddr.ip.removeprefix("::ffff:"))
    assert {"airflow-api-server", "mlflow", "spark-connect", "ray-head"} <= set(listening)
    assert set().union(*listening.values()) == {"127.0.0.1"}, listening


def test_secrets_are_in_private_files_and_in_no_command_line(platform):
    addresses = platform.platform
    home = platform.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    files = [addresses[name] for name in ("airflow_password_file", "mlflow_password_file", "ray_token_file")]
    private = [home / "platform.json", home / "plan.json", home / "airflow" / "airflow.cfg", *files]
    for path in private:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path
    password = json.loads(Path(addresses["airflow_password_file"]).read_text())["admin"]
    token = addresses["spark_remote"].partition("token=")[2]
    assert len(token) >= 32
    commands = [" ".join(process.cmdline()) for entry in record.read_record(home)["services"].values() if entry["pid"] for process in family(entry)]
    for value in (password, token, Path(addresses["ray_token_file"]).read_text(), mlflow_sign_in(platform)[1]):
        assert not any(value in command for command in commands)
        for log in (home / "logs").glob("*.log"):
            assert value not in log.read_text(errors="replace"), log


def test_airflow_refuses_strangers_and_knows_the_dags(platform):
    url = platform.platform["airflow_url"]
    assert httpx.get(f"{url}/api/v2/dags", trust_env=False).status_code == 401
    assert httpx.post(f"{url}/auth/token", json={"username": "admin", "password": "admin"}, trust_env=False).status_code == 401
    with AirflowClient(platform) as client:
        assert client.wait_for_dag("prepare_corpus")["is_paused"] is True
        assert client.wait_for_dag("build_model")["has_import_errors"] is False
        assert client.import_errors() == []
        assert client.ensure_pool("of_the_test", 2)["slots"] == 2
        assert client.ensure_pool("of_the_test", 3)["slots"] == 3
        with pytest.raises(MoelineError, match="Could not find dag no_such_dag") as refused:
            client.create_backfill("no_such_dag", "2026-01-01", "2026-01-02")
        assert refused.value.status == 404


def test_mlflow_refuses_strangers_and_lets_in_who_has_the_password(platform):
    api = f"{platform.platform['mlflow_uri']}/api/2.0/mlflow/experiments/search?max_results=1"
    user, password = mlflow_sign_in(platform)
    answers = [httpx.get(api, auth=auth, trust_env=False).status_code for auth in (None, (user, "x" * len(password)), ("admin", password), (user, password))]
    assert answers == [401, 401, 401, 200]
    assert httpx.get(platform.platform["mlflow_uri"], trust_env=False).headers["www-authenticate"].startswith("Basic ")
    create = api.replace("/search?max_results=1", "/create")  # a page from elsewhere in a browser that remembers the password
    ridden = httpx.post(create, auth=(user, password), headers={"Origin": "https://elsewhere.example"}, json={"name": "ridden"}, trust_env=False)
    assert ridden.status_code == 403


def test_tasks_get_what_a_stage_process_needs(platform):
    scheduler = record.read_record(platform.home)["services"]["airflow-scheduler"]
    plan = json.loads((platform.home / "plan.json").read_text())
    variables = next(service["env"] for service in plan["services"] if service["name"] == "airflow-scheduler")
    assert variables["MOELINE_HOME"] == str(platform.home)
    assert variables["MOELINE_ENV"] == "local"
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(REPO)
    assert variables["RAY_AUTH_TOKEN_PATH"] == platform.platform["ray_token_file"]
    assert psutil.Process(scheduler["pid"]).cwd() == str(platform.home)


def test_up_twice_is_harmless_and_concurrent_ups_take_turns(platform):
    before = {name: service["pid"] for name, service in local.status(platform)["services"].items()}
    said, failed = [], []

    def once_more():
        try:
            local.up(platform, echo=said.append)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=once_more) for _ in range(2)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert said.count("The platform is up already.") == 2
    assert time.monotonic() - began < 10
    assert {name: service["pid"] for name, service in local.status(platform)["services"].items()} == before


def test_killed_services_are_restarted(platform):
    before = local.status(platform)["services"]
    hurt = ("airflow-triggerer", "postgres")
    for name in hurt:
        os.kill(before[name]["pid"], signal.SIGKILL)

    def recovered():
        now = local.status(platform)
        return now["healthy"] and all(now["services"][name]["restarts"] > before[name]["restarts"] for name in hurt)

    until(recovered, seconds=90, what="killed services are healthy again")
    with AirflowClient(platform) as client:
        assert client.health()["metadatabase"]["status"] == "healthy"


def test_a_killed_supervisor_does_not_block_the_next_up(platform):
    """As after a power cut: stale platform.json, stale PostgreSQL lock file, stale sockets. Ends with a running platform."""
    before = record.read_record(platform.home)
    for entry in [before["supervisor"], *before["services"].values()]:
        if entry["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(entry["pid"], signal.SIGKILL)
    until(lambda: not local.status(platform)["running"], seconds=10, what="supervisor is gone")
    said = []
    after = local.up(platform, echo=said.append)
    assert "airflow-migrate" not in after["services"], "the databases were migrated again"
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    found = local.status(platform)
    assert found["healthy"], found
    own = {process.pid for entry in after["services"].values() if entry["pid"] for process in family(entry)}
    assert not [entry["pid"] for entry in before["services"].values() if entry["pid"] in own]
    with AirflowClient(platform) as client:
        assert client.ensure_pool("of_the_test", 3)["slots"] == 3, "metadata did not survive"
    print("\n".join(said))
