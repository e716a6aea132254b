"""A connection to Ray: the platform's head, or a local Ray of this process that ends with the block.

Change here: how a process reaches Ray and with which token. Not here: what it then runs (ray.py trains, ray_scoring.py scores).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment, Resources
from jobs.services import platform

STARTS = 3

# Whoever runs a cluster may set them otherwise.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts its processes by a plain fork out of one with gRPC's threads. gRPC's handler then starts these again in the child,
    # where they can crash before the new program begins (Ray's issue 60316).
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default: do not hide accelerators from a worker that asked for none
}


@contextlib.contextmanager
def connected(env: Environment, resources: Resources, settings: Mapping[str, str] | None = None) -> Iterator[None]:
    """A connection to the platform's Ray head, else a local Ray that ends with this block.

    ``settings``: more variables for Ray, where the process's own environment does not set them. The environment is put back afterwards.
    Raises MoelineError when Ray does not answer or start.
    """
    address = env.platform.get("ray_address")
    variables = {key: os.environ.get(key, value) for key, value in {**_SETTINGS, **(settings or {})}.items()}
    if address:
        _require_answer(address)
        variables |= platform.client_environment(env)  # the head's token; must be set before ray is imported
        options: dict[str, Any] = {"address": address}
    else:
        # A fresh token of this connection: without one Ray would write its own into the home folder.
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        variables.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray listens on all interfaces unless clusters are switched off
        cpus = max(1, int(env.services.get("ray_cpus", os.cpu_count() or 1)))
        options = {"num_cpus": cpus, "num_gpus": int(resources.gpus), "include_dashboard": False, "object_store_memory": 128 << 20}
    with _environment(variables):
        _init(options)
        import ray

        try:
            yield
        finally:
            ray.shutdown()


def ended_drivers(env: Environment) -> list[dict[str, Any]]:
    """Processes that spoke to the platform's Ray head and have ended: pid, started_at and ended_at (Unix seconds), as the head recorded them.

    It forgets them when it stops. Raises MoelineError when it does not answer.
    """
    address = env.platform["ray_address"]
    _require_answer(address)
    with _environment({**_SETTINGS, **platform.client_environment(env)}):  # the token must be set before ray is imported
        from ray._raylet import GcsClient

        _read_settings_anew()
        jobs = GcsClient(address=address.removeprefix("ray://")).get_all_job_info()
    return [{"pid": j.driver_pid, "started_at": j.start_time / 1000.0, "ended_at": j.end_time / 1000.0} for j in jobs.values() if j.is_dead and j.end_time]


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _read_settings_anew() -> None:
    """Ray keeps whether there is a token, and the first it read, for as long as the process lives, whichever cluster comes next."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _init(options: dict[str, Any]) -> None:
    """ray.init, up to STARTS times where another try can help: a local Ray, or a server of our own that a head starts for Ray Client.

    Both have 30 s to start, which a machine busy with other work can miss.
    """
    import ray

    _read_settings_anew()
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**options, logging_level="ERROR", log_to_driver=False, configure_logging=False)
            return
        except Exception as error:  # Ray raises plain Exception here, among others
            ray.shutdown()
            did_not_start = "address" not in options or isinstance(error, ConnectionAbortedError)
            if attempt == STARTS or not did_not_start:
                where = options.get("address", "this machine") + (f" ({attempt} times)" if attempt > 1 else "")
                lines = str(error).strip().splitlines() or [type(error).__name__]
                reason = f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") else lines[0]  # of a traceback from a server the end
                raise MoelineError(f"Ray could not be reached or started on {where}: {reason}") from error


def _require_answer(address: str) -> None:
    """Ray itself waits over a minute for a head that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=3).close()
    except (OSError, ValueError) as error:
        raise MoelineError(f"The Ray head at {address} does not answer ({error}). See `moeline status`; `moeline up` starts it again.") from None
