"""Airflow of one machine: its configuration file, secrets, and the four processes it consists of.

Change here: how Airflow is started. Not here: its settings (infra/local/airflow.cfg), its REST client (jobs/services/airflow.py).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from importlib import metadata
from pathlib import Path
from string import Template

from jobs.environment import REPO, Environment
from jobs.services import accounts
from jobs.services.accounts import OWNER
from jobs.services.platform.ports import LOOPBACK
from jobs.services.platform.record import secret, write_private
from jobs.services.platform.service import Service

_COMPONENTS = {  # process -> (command, name in Airflow's health report)
    "airflow-scheduler": (("scheduler", "--skip-serve-logs"), "scheduler"),
    "airflow-dag-processor": (("dag-processor",), "dag_processor"),
    "airflow-triggerer": (("triggerer", "--skip-serve-logs"), "triggerer"),
}


def home(env: Environment) -> Path:
    return env.home / "airflow"


def password_file(env: Environment) -> Path:
    """The owner's own password, as JSON of user name to password: what `moeline` signs in with. Of other accounts only hashes are kept."""
    return home(env) / "passwords.json"


def write_configuration(env: Environment, *, port: int, database_url: str) -> None:
    """airflow.cfg (0600: it holds keys) and the generated password; keys survive restarts, so sessions and stored secrets do too."""
    folder = home(env)
    keys = folder / "keys"
    password = json.loads(secret(password_file(env), lambda: json.dumps({OWNER: secrets.token_urlsafe(18)}) + "\n"))[OWNER]
    accounts.keep_owner(accounts.file_of(env.home), password)
    values = {
        "parallelism": str(env.services.get("airflow_parallelism", 4)),
        "dags_folder": str(REPO / "dags"),
        "plugins_folder": str(REPO / "infra" / "dashboards"),
        "accounts": str(accounts.file_of(env.home)),
        "fernet_key": secret(keys / "fernet", lambda: base64.urlsafe_b64encode(os.urandom(32)).decode()),
        "api_secret_key": secret(keys / "api", lambda: secrets.token_hex(32)),
        "jwt_secret": secret(keys / "jwt", lambda: secrets.token_hex(64)),
        "url": f"http://{LOOPBACK}:{port}",
        "host": LOOPBACK,
        "port": str(port),
        "database_url": database_url,
        "log_folder": str(env.home / "logs" / "airflow"),
    }
    # Airflow's parser reads % as the start of an interpolation.
    escaped = {key: value.replace("%", "%%") for key, value in values.items()}
    write_private(folder / "airflow.cfg", Template((REPO / "infra" / "local" / "airflow.cfg").read_text()).substitute(escaped))


def services(env: Environment, *, port: int, needs: tuple[str, ...], stamp_folder: Path, common: dict[str, str]) -> list[Service]:
    """The migration (left out once this version has done it) and the processes, scheduler last to start and first to stop."""
    airflow = (sys.executable, "-m", "airflow")
    variables = {**common, "AIRFLOW_HOME": str(home(env)), "AIRFLOW__CORE__LAZY_LOAD_PLUGINS": "True"}
    url = f"http://{LOOPBACK}:{port}"
    health_page = f"{url}/api/v2/monitor/health"
    stamp = stamp_folder / f"airflow-{metadata.version('apache-airflow')}.migrated"
    cwd, logs = str(env.home), env.home / "logs"
    found: list[Service] = []
    if not stamp.exists():
        migrate = Service(
            name="airflow-migrate", argv=(*airflow, "db", "migrate"), env=variables, cwd=cwd, log=str(logs / "airflow-migrate.log"),
            needs=needs, once=True, stamp=str(stamp),
        )  # fmt: skip
        found.append(migrate)
        needs = (migrate.name,)
    found.append(
        Service(
            name="airflow-api-server",
            argv=(*airflow, "api-server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"),
            env=variables,
            cwd=cwd,
            log=str(logs / "airflow-api-server.log"),
            needs=needs,
            port=port,
            url=url,
            health={"http": health_page},
            stop_after=("airflow-scheduler",),
        )
    )
    for name, (command, component) in _COMPONENTS.items():
        found.append(
            Service(
                name=name,
                argv=(*airflow, *command),
                env=variables,
                cwd=cwd,
                log=str(logs / f"{name}.log"),
                needs=needs,
                health={"airflow": health_page, "component": component},
                stop_seconds=5.0,
            )
        )
    return found
