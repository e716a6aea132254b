"""Which services the platform of an environment consists of: ports, addresses, variables, and the plan for the supervisor.

Change here: adding or leaving out a service. Not here: how one is started (postgres.py, airflow.py, engines.py).
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services.java import find_java
from jobs.services.platform import airflow, engines, postgres
from jobs.services.platform.mlflow_server import USER
from jobs.services.platform.ports import LOOPBACK, choose_ports
from jobs.services.platform.processes import MARK
from jobs.services.platform.service import Service

_USUAL_PORTS = {"airflow": ("airflow_port", 8080), "mlflow": ("mlflow_port", 5000), "spark": ("spark_connect_port", 15002), "ray": ("ray_port", 6379)}
_LONGEST_RUNTIME_PATH = 44  # Ray puts sockets up to 62 characters below it; the kernel allows 107 in all
# Settings of other installations a person may have exported: they would override ours.
_FOREIGN = ("AIRFLOW_", "AIRFLOW__", "MLFLOW_", "RAY_", "SPARK_", "PYSPARK_", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")


def plan(env: Environment) -> dict[str, Any]:
    """Everything the supervisor needs, as JSON: services in order of start, and the addresses to announce.

    Writes the configuration files of the services and chooses their ports. Raises MoelineError when the JDK, the JARs or
    a port are missing.
    """
    java = find_java()
    external = {key: env.services[key] for key in ("postgres_url", "spark_remote", "ray_address", "mlflow_uri") if env.services.get(key)}
    env.home.mkdir(parents=True, exist_ok=True)
    env.home.chmod(stat.S_IRWXU)
    (env.home / "logs").mkdir(exist_ok=True)
    runtime = runtime_folder(env.home)
    ports = choose_ports({name: int(env.services.get(key, usual)) for name, (key, usual) in _USUAL_PORTS.items()})
    common = common_variables(env)
    services: list[Service] = []

    needs: tuple[str, ...] = ()
    urls = {database: with_database(external["postgres_url"], database) for database in postgres.DATABASES} if "postgres_url" in external else {}
    if not urls:
        services += _postgres(env, runtime, common)
        needs = ("postgres",)
        urls = {database: postgres.url(runtime / "postgres", database) for database in postgres.DATABASES}
    # Stamps lie beside the data they speak of: without the data folder they are gone too.
    stamps = env.home / ("postgres" if needs else f"stamps-{hashlib.sha256(urls['airflow'].encode()).hexdigest()[:12]}")
    stamps.mkdir(exist_ok=True)
    airflow.write_configuration(env, port=ports["airflow"], database_url=urls["airflow"])
    services += airflow.services(env, port=ports["airflow"], needs=needs, stamp_folder=stamps, common=common)
    addresses: dict[str, Any] = {
        "airflow_url": f"http://{LOOPBACK}:{ports['airflow']}", "airflow_user": airflow.OWNER, "airflow_password_file": str(airflow.password_file(env)),
        "postgres_url": urls["airflow"], **external,
    }  # fmt: skip
    if "mlflow_uri" not in external:
        services.append(engines.mlflow_server(env, port=ports["mlflow"], database_url=urls["mlflow"], needs=needs, stamp_folder=stamps, common=common))
        addresses["mlflow_uri"] = f"http://{LOOPBACK}:{ports['mlflow']}"
        addresses |= {"mlflow_user": USER, "mlflow_password_file": str(engines.mlflow_password_file(env))}
    if "spark_remote" not in external:
        services.append(engines.spark_connect(env, port=ports["spark"], java=java, runtime_folder=runtime, common=common))
        addresses["spark_remote"] = engines.spark_remote(env, ports["spark"])
    services.append(engines.checks(env, runtime_folder=runtime, common=common))
    addresses["check_socket"] = engines.check_socket(runtime)
    if "ray_address" not in external:
        services.append(engines.ray_head(env, port=ports["ray"], runtime_folder=runtime, common=common))
        addresses["ray_address"] = f"{LOOPBACK}:{ports['ray']}"
        addresses["ray_token_file"] = engines.ray_environment(env)["RAY_AUTH_TOKEN_PATH"]
    return {"home": str(env.home), "services": [service.to_json() for service in services], "addresses": addresses}


def _postgres(env: Environment, runtime: Path, common: dict[str, str]) -> list[Service]:
    folder, sockets = env.home / "postgres", runtime / "postgres"
    folder.mkdir(mode=0o700, exist_ok=True)
    postgres.prepare_folders(folder, sockets)
    needs: tuple[str, ...] = ()
    found = []
    if not postgres.is_initialised(folder):
        step = Service(
            name="postgres-setup", argv=(sys.executable, "-m", "jobs.services.platform.postgres", str(folder)), env=common, cwd=str(env.home),
            log=str(env.home / "logs" / "postgres-setup.log"), once=True,
        )  # fmt: skip
        found.append(step)
        needs = (step.name,)
    found.append(
        Service(
            name="postgres",
            argv=postgres.server_command(folder / "data", sockets),
            env=common,
            cwd=str(folder),
            log=str(env.home / "logs" / "postgres.log"),
            needs=needs,
            health={"postgres": str(sockets / postgres.SOCKET_NAME)},
            stop_signal=signal.SIGINT,
            own_death_signal=os.geteuid() == 0,
            stop_after=("airflow-scheduler", "airflow-api-server", "airflow-dag-processor", "airflow-triggerer", "mlflow"),
        )
    )
    return found


def common_variables(env: Environment) -> dict[str, str]:
    """The environment of every service, and through Airflow's scheduler of every task: enough for `python -m jobs.run`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    asked = os.environ.get("MOELINE_ENV", "")
    programs = [str(Path(sys.executable).parent), *kept.get("PATH", os.defpath).split(os.pathsep)]
    return {
        **kept,
        **engines.ray_environment(env),
        "PATH": os.pathsep.join(dict.fromkeys(programs)),
        "PYTHONPATH": str(REPO),
        "PYTHONUNBUFFERED": "1",
        "MOELINE_HOME": str(env.home),
        "MOELINE_ENV": asked if asked.endswith(".toml") and Path(asked).stem == env.name else env.name,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "JAVA_HOME": str(find_java().home),
        MARK: str(env.home),
    }


def runtime_folder(home: Path) -> Path:
    """A private folder for Unix sockets: inside ``home`` when its path is short enough for them, else in the temporary folder."""
    inside = home / "run"
    if len(str(inside)) <= _LONGEST_RUNTIME_PATH:
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside
    name = f"moeline-{os.geteuid()}-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 - made and checked below
        folder = Path(parent) / name
        if len(str(folder)) > _LONGEST_RUNTIME_PATH:
            continue
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        # Anyone may create a folder of this name there first.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise MoelineError(f"{folder} belongs to somebody else or is open to others. Remove it, or set MOELINE_HOME to a shorter path.")
        return folder
    raise MoelineError(f"Unix sockets need a short path: {home} is too long and so is the temporary folder. Set MOELINE_HOME to a shorter path.")


def with_database(url: str, database: str) -> str:
    """The URL of another database of the same server."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{database}"))
