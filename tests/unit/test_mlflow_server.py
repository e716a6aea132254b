"""The door of the MLflow server: who has the password is let through, the health check is open, nothing else is."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import mlflow
from jobs.services.platform.mlflow_server import USER, guarded


async def behind(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Its result, from a thread of its own: the browser tests before these leave a running loop in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def asked(path: str, headers: list[tuple[str, str]] | None = None, method: str = "GET") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded(behind, "secret-ü")), base_url="http://x") as client:
            return await client.request(method, path, headers=headers)

    return run(ask())


def basic(user: str, password: str) -> list[tuple[str, str]]:
    return [("authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())]


def test_the_password_opens_the_door() -> None:
    assert asked("/", basic(USER, "secret-ü")).text == "inside"
    assert asked("/api/2.0/mlflow/runs/create", basic(USER, "secret-ü"), "POST").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        None, [], basic(USER, ""), basic(USER, "secret-"), basic(USER, "secret-ü "), basic("admin", "secret-ü"), [("authorization", "Basic")],
        [("authorization", basic(USER, "secret-ü")[0][1].lower())], [("authorization", "Bearer secret")], [("cookie", basic(USER, "secret-ü")[0][1])],
        [("authorization", "Basic x"), *basic(USER, "secret-ü")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/api/2.0/mlflow/runs/create", "/health/../api", "//health", "/healthx", "/Health", "/static-files/x.js"])
def test_nothing_else_does(headers: list[tuple[str, str]] | None, path: str) -> None:
    answer = asked(path, headers)
    assert (answer.status_code, "inside" in answer.text) == (401, False)
    assert answer.headers["www-authenticate"].startswith("Basic ")


def test_the_health_check_is_open() -> None:
    assert asked("/health").status_code == 200


def test_a_web_socket_without_the_password_is_closed_before_it_opens() -> None:
    sent = []

    async def send(message):
        sent.append(message)

    run(guarded(behind, "secret")({"type": "websocket", "path": "/x", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_client_signs_in_with_the_file_and_never_at_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")
    env = Environment.load("local", tmp_path)
    env.home.mkdir(exist_ok=True)
    file = tmp_path / "password"
    (tmp_path / "platform.json").write_text(
        f'{{"addresses": {{"mlflow_uri": "http://127.0.0.1:9", "mlflow_user": "moeline", "mlflow_password_file": "{file}"}}}}'
    )
    with pytest.raises(MoelineError, match=r"cannot be read from .*password: No such file"):
        mlflow._sign_in(env)
    file.write_text("from the file\n")
    mlflow._sign_in(env)
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("moeline", "from the file")
    env.services["mlflow_uri"] = "https://somebody.example"
    assert env.platform["mlflow_uri"] == "https://somebody.example" and "mlflow_password_file" not in env.platform
