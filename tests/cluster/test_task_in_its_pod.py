"""What Airflow runs in a stage's pod, with the pod's own variables: it speaks to the API server by TLS that it trusts, and needs no database and no key."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer

import chart
import pytest
import yaml
from test_tls_front import certificate


@pytest.fixture
def api_server(tmp_path):
    """(address, requests it got) of a server with TLS that knows no task: it answers the first request of a task with 404."""
    asked: list[tuple[str, str, str]] = []

    class Api(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            asked.append((self.command, self.path, self.headers.get("Authorization", "")))
            body = json.dumps({"detail": {"reason": "not_found", "message": "no such task"}}).encode()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    trusted = certificate(tmp_path / "tls")
    server = HTTPServer(("127.0.0.1", 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, tmp_path / "tls" / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}/execution/", asked
    server.shutdown()
    server.server_close()


def pod_variables(documents, folder, address: str) -> dict[str, str]:
    """Those of the pod of clean, with places on this machine."""
    pod = yaml.safe_load(chart.named(documents, "ConfigMap", "moeline-stage-pods")["data"]["clean.yaml"])
    given = {v["name"]: v["value"] for v in pod["spec"]["containers"][0]["env"] if "value" in v}
    told = chart.named(documents, "ConfigMap", "moeline-airflow")["data"] | given
    places = {"/var/lib/moeline": str(folder / "home"), "/opt/moeline": str(chart.REPO), "/etc/moeline/ca/ca.crt": str(folder / "tls" / "tls.crt")}
    for there, here in places.items():
        told = {name: value.replace(there, here) for name, value in told.items()}
    moved = {"AIRFLOW_HOME": str(folder / "airflow"), "HOME": str(folder), "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": address}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    return {**kept, **told, **moved, "PYTHONPATH": str(chart.REPO)}


def test_a_task_asks_the_api_server_and_nothing_else(documents, api_server, tmp_path):
    address, asked = api_server
    task = str(uuid.uuid4())
    ti = {"id": task, "dag_version_id": str(uuid.uuid4()), "task_id": "clean", "dag_id": "prepare_corpus", "run_id": "r", "try_number": 1, "map_index": -1}
    ti |= {"pool_slots": 1, "queue": "default", "priority_weight": 1}
    workload = {"type": "ExecuteTask", "token": "the-tasks-own", "ti": ti, "dag_rel_path": "prepare_corpus.py", "log_path": "log/1"}
    workload["bundle_info"] = {"name": "dags-folder", "version": None}
    command = [sys.executable, "-m", "airflow.sdk.execution_time.execute_workload", "--json-string", json.dumps(workload)]
    variables = pod_variables(documents, tmp_path, address)
    assert not [name for name in variables if "SQL_ALCHEMY" in name or "FERNET" in name or "JWT" in name]
    done = subprocess.run(command, env=variables, cwd=chart.REPO, capture_output=True, text=True, check=False, timeout=180)
    assert asked and asked[0] == ("PATCH", f"/execution/task-instances/{task}/run", "Bearer the-tasks-own"), (done.stdout + done.stderr)[-3000:]
    assert not (tmp_path / "airflow" / "airflow.db").exists()
    assert "sqlalchemy" not in (done.stdout + done.stderr).lower()
