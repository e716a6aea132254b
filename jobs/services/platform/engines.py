"""The engines beside Airflow: Spark Connect, the Ray head, MLflow and check servers, each as a supervised service on loopback.

Change here: how an engine is started. Not here: Spark's settings (jobs/services/spark.py), sizes (infra/env/*.toml).
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import sys
from importlib import metadata
from pathlib import Path

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services.java import Java
from jobs.services.platform.ports import LOOPBACK
from jobs.services.platform.ray_head import ADDRESS_FILE
from jobs.services.platform.record import secret, write_private
from jobs.services.platform.service import Service

_OBJECT_STORE_BYTES = 200_000_000
SPARK_SOCKETS = "spark"  # folder of the runtime folder: a socket per Python daemon
_SPARK_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"


def spark_remote(env: Environment, port: int) -> str:
    """The address clients use. ``localhost``: for other names the client insists on TLS as soon as there is a token."""
    return f"sc://localhost:{port}/;token={_spark_token(env)}"


def _spark_token(env: Environment) -> str:
    return secret(env.home / "spark" / "token", lambda: secrets.token_hex(32)).strip()


def spark_connect(env: Environment, *, port: int, java: Java, runtime_folder: Path, common: dict[str, str]) -> Service:
    """One Spark Connect server with the Delta JARs; its token is in a 0600 properties file, not in the command line."""
    from jobs.services.spark import spark_conf, spark_environment

    folder = env.home / "spark"
    (folder / "local").mkdir(parents=True, exist_ok=True)
    (sockets := runtime_folder / SPARK_SOCKETS).mkdir(mode=0o700, exist_ok=True)
    conf = {
        **spark_conf(env),
        # On ports, Python's daemons would fork for every caller before they ask for the secret.
        "spark.python.unix.domain.socket.enabled": "true",
        "spark.python.unix.domain.socket.dir": str(sockets),
        "spark.connect.grpc.binding.address": LOOPBACK,
        "spark.connect.grpc.binding.port": str(port),
        "spark.connect.authenticate.token": _spark_token(env),
    }
    write_private(folder / "server.properties", "".join(f"{key} {_property(value)}\n" for key, value in sorted(conf.items())))
    write_private(folder / "conf" / "log4j2.properties", (REPO / "infra" / "local" / "log4j2.properties").read_text())
    spark_home = _package_folder("pyspark")
    variables = {
        **common, **spark_environment(env), "JAVA_HOME": str(java.home), "SPARK_HOME": str(spark_home), "SPARK_CONF_DIR": str(folder / "conf"),
    }  # fmt: skip
    command = (str(spark_home / "bin" / "spark-submit"), "--properties-file", str(folder / "server.properties"), "--class", _SPARK_SERVER, "spark-internal")
    return Service(
        name="spark-connect", argv=command, env=variables, cwd=str(folder), log=str(env.home / "logs" / "spark-connect.log"), port=port,
        health={"tcp": [LOOPBACK, port]}, stop_after=("airflow-scheduler",),
    )  # fmt: skip


def _property(value: str) -> str:
    """A value in Java's properties syntax."""
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def ray_environment(env: Environment) -> dict[str, str]:
    """What every process that talks to the local Ray head needs in its environment before it imports ray.

    Ray replaces loopback addresses by the machine's own (and listens on all interfaces) unless clusters are switched off
    by the variable it has for that; the token keeps other users of the machine out.
    """
    token_file = env.home / "ray" / "token"
    secret(token_file, lambda: secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # see ray_connection
        # Its two pages of figures are the ports of Ray that ask for no token. The second has no switch: a number that is no port keeps it shut.
        "RAY_enable_metrics_collection": "0",
        "DASHBOARD_METRIC_PORT": "65536",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 lets every idle service of the same machine push a training of two threads aside
    }


def ray_head(env: Environment, *, port: int, runtime_folder: Path, common: dict[str, str]) -> Service:
    """The Ray head. ``runtime_folder`` is short: Ray puts Unix sockets some 60 characters below it."""
    folder = runtime_folder / "ray"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for session in folder.glob("session_*"):  # of heads that are no longer running: logs and sockets
        session.unlink() if session.is_symlink() else shutil.rmtree(session, ignore_errors=True)
    any_port = [part for name in ("object-manager", "node-manager", "min-worker", "max-worker") for part in (f"--{name}-port", "0")]
    agents = [part for name in ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export") for part in (f"--{name}-port", "0")]
    command = (
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard", "false", "--no-monitor",
        "--include-log-monitor", "false", "--node-ip-address", LOOPBACK, "--port", str(port), "--num-cpus", str(env.services.get("ray_cpus", 2)),
        "--object-store-memory", str(_OBJECT_STORE_BYTES), "--temp-dir", str(folder), *any_port, *agents,
    )  # fmt: skip
    variables = {**common, **ray_environment(env), "RAY_START_HOOK": "jobs.services.platform.ray_head.prepare"}
    return Service(
        name="ray-head", argv=command, env=variables, cwd=str(env.home), log=str(env.home / "logs" / "ray-head.log"), port=port,
        health={"unix": str(folder / "session_latest" / "sockets" / "raylet"), "exists": str(folder / ADDRESS_FILE)}, stop_after=("airflow-scheduler",),
    )  # fmt: skip


def mlflow_password_file(env: Environment) -> Path:
    """The generated password of the MLflow server, made on first use."""
    file = env.home / "mlflow" / "password"
    secret(file, lambda: secrets.token_urlsafe(18))
    return file


def mlflow_server(env: Environment, *, port: int, database_url: str, needs: tuple[str, ...], stamp_folder: Path, common: dict[str, str]) -> Service:
    """The MLflow tracking server: PostgreSQL behind it, artifacts proxied from ``env.artifacts``/mlflow."""
    artifacts = env.artifacts / "mlflow"
    artifacts.mkdir(parents=True, exist_ok=True)
    variables = {
        **common, "MLFLOW_BACKEND_STORE_URI": database_url, "MLFLOW_ARTIFACTS_DESTINATION": str(artifacts), "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{LOOPBACK}:{port},localhost:{port}",
    }  # fmt: skip
    stamp = stamp_folder / f"mlflow-{metadata.version('mlflow')}.migrated"
    command = (sys.executable, "-m", "jobs.services.platform.mlflow_server", str(port), str(stamp), str(mlflow_password_file(env)))
    return Service(
        name="mlflow", argv=command, env=variables, cwd=str(env.home), log=str(env.home / "logs" / "mlflow.log"), needs=needs, port=port, url=f"http://{LOOPBACK}:{port}",
        health={"http": f"http://{LOOPBACK}:{port}/health"}, stop_after=("airflow-scheduler",),
    )  # fmt: skip


def checks(env: Environment, *, runtime_folder: Path, common: dict[str, str]) -> Service:
    """The check server: Great Expectations imported once for all stages, on a Unix socket in the owner's folder."""
    address = check_socket(runtime_folder)
    variables = {**common, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return Service(
        name="checks", argv=(sys.executable, "-m", "expectations.serve", address), env=variables, cwd=str(env.home), log=str(env.home / "logs" / "checks.log"),
        health={"unix": address}, stop_after=("airflow-scheduler",),
    )  # fmt: skip


def check_socket(runtime_folder: Path) -> str:
    return str(runtime_folder / "checks.sock")


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MoelineError(f"The package {name} is not installed in {sys.prefix}. Run: make setup")
    return Path(next(iter(spec.submodule_search_locations)))
