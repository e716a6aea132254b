"""Airflow's interface for a browser: sign in as a person does, open the page where a person finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.environment import Environment

NAV_PAGE = "/plugin/cost-vs-accuracy"


def run_tab(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/runs/{run_id}/plugin/cost-vs-accuracy-run"


def sign_in(page: Any, env: Environment) -> None:
    """Through the form; returns once Airflow has left it (a navigation before that would be aborted)."""
    addresses = env.platform
    password = json.loads(Path(addresses["airflow_password_file"]).read_text())[addresses["airflow_user"]]
    page.goto(addresses["airflow_url"], wait_until="load")
    page.fill("input[name=username]", addresses["airflow_user"])
    page.fill("input[name=password]", password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/auth/login" not in url)


def open_in_airflow(page: Any, env: Environment, path: str) -> Any:
    """Open a page of Airflow that frames ours; returns our frame once it has drawn."""
    page.goto(f"{env.platform['airflow_url']}{path}", wait_until="load")
    frame = page.frame_locator("iframe")
    frame.locator("main[aria-busy=false]").wait_for()
    return frame
