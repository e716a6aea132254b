"""A real Chromium, and the page served from tables of the test's own."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.environment import REPO, Environment

if "airflow" not in sys.modules:  # airflow reads its home once, when first imported
    _home = tempfile.mkdtemp(prefix="moeline-airflow-")
    atexit.register(shutil.rmtree, _home, ignore_errors=True)
    os.environ.setdefault("AIRFLOW_HOME", _home)
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser; skips where there is none."""
    executable = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="the test extra has Playwright")
    with playwright.sync_playwright() as driver:
        # Chromium refuses its own sandbox to root, which containers usually are.
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens tabs that fail the test when a script fails, a dialog opens or the browser reports an error (such as a breach of the CSP)."""
    contexts, problems = [], []

    def make(*, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # the first page of a cold Airflow on two busy cores took more than 30 s
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("console", lambda message: problems.append(f"console: {message.text}") if _ours_and_bad(message) else None)
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    yield make
    for context in contexts:
        context.close()
    assert problems == []


def _ours_and_bad(message: Any) -> bool:
    """An error of this page; Airflow's interface around it logs some of its own."""
    return message.type == "error" and "/costs/" in message.location.get("url", "")


@contextmanager
def _served(application: Any) -> Iterator[str]:
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline and thread.is_alive(), "the page could not be served"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def page_server() -> Iterator[str]:
    """The plugin's own app without Airflow around it: anyone is signed in here. Which tables it reads is up to MOELINE_HOME."""
    sys.path.insert(0, str(REPO / "infra" / "dashboards"))
    try:
        import cost_vs_accuracy as plugin
        from airflow.api_fastapi.core_api.security import get_user
        from fastapi import FastAPI
    finally:
        sys.path.pop(0)
    plugin.app.dependency_overrides[get_user] = lambda: None
    outer = FastAPI()
    outer.mount("/costs", plugin.app)
    with _served(outer) as url:
        yield f"{url}/costs/page"
    plugin.app.dependency_overrides.clear()


@pytest.fixture
def page_of(env: Environment, page_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of the page showing the tables of ``env``."""
    monkeypatch.setenv("MOELINE_HOME", str(env.home))
    return page_server
