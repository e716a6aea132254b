"""People with a role, signed in to a running platform's Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from jobs.environment import Environment
from jobs.services import accounts


@contextmanager
def person(env: Environment, role: str) -> Iterator[httpx.Client]:
    """Somebody with an account of this role as long as the block lasts; a client of Airflow that carries the token."""
    file, name = accounts.file_of(env.home), f"a{'n' if role[0] in 'aeiou' else ''}-{role}"
    password = accounts.add(file, name, role)
    try:
        with httpx.Client(base_url=env.platform["airflow_url"], timeout=60, trust_env=False) as client:
            answer = client.post("/auth/token", json={"username": name, "password": password})
            assert answer.status_code == 201, answer.text
            client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            yield client
    finally:
        accounts.remove(file, name)
