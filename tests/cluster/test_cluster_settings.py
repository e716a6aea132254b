"""What one machine is told, the cluster is told too: settings of Airflow, Spark, Ray and MLflow are compared, and every difference is listed here."""

from __future__ import annotations

import configparser
from urllib.parse import urlsplit

import chart
import pytest

from jobs.environment import Environment
from jobs.services import jars, spark
from jobs.services.platform import engines
from jobs.services.platform.mlflow_server import USER

REFERRED = "from a Secret"
# section.key of infra/local/airflow.cfg -> why the cluster's differs
AIRFLOW_DIFFERS = {
    "core.executor": "a pod per task", "core.parallelism": "a value", "core.dags_folder": "a place", "core.plugins_folder": "a place",
    "core.execution_api_server_url": "a Service", "core.fernet_key": "a Secret", "database.sql_alchemy_conn": "a Secret", "api.host": "a pod's address",
    "api.port": "fixed", "api.base_url": "a value", "api.secret_key": "a Secret", "api_auth.jwt_secret": "a Secret",
    "logging.base_log_folder": "a place", "logging.dag_processor_child_process_log_directory": "a place", "moeline.accounts": "a place",
    "dag_processor.refresh_interval": "DAG files change with the image only",
}  # fmt: skip
SPARK_DIFFERS = {
    "spark.master", "spark.driver.memory", "spark.driver.host", "spark.driver.bindAddress", "spark.local.dir", "spark.sql.warehouse.dir",
    "spark.sql.shuffle.partitions", "spark.sql.execution.pyspark.python",
    "spark.jars",  # in the image
    "spark.driver.extraJavaOptions",  # for a machine of two cores
}  # fmt: skip
RAY_DIFFERS = {
    "RAY_AUTH_TOKEN_PATH",  # a Secret
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",  # keeps a head on loopback
    "RAY_worker_niceness",  # nothing else runs in the pod
}


@pytest.fixture(scope="module")
def properties(documents):
    text = chart.named(documents, "ConfigMap", "moeline-spark")["data"]["server.properties"]
    return dict(line.split(" ", maxsplit=1) for line in text.strip().splitlines())


def variables(documents, component: str, container: str) -> dict[str, str]:
    for pod in chart.pods(documents):
        if pod.component == component:
            (found,) = [c for c in pod.containers if c["name"] == container]
            return {v["name"]: v.get("value", REFERRED) for v in found["env"]}
    raise AssertionError(component)


def test_airflow_is_told_the_same(documents):
    told = chart.named(documents, "ConfigMap", "moeline-airflow")["data"]
    local = configparser.ConfigParser(interpolation=None)
    local.read(chart.REPO / "infra" / "local" / "airflow.cfg")
    named = {f"{section}.{key}": value for section in local.sections() for key, value in local[section].items()}
    assert set(AIRFLOW_DIFFERS) <= set(named)
    for name, value in named.items():
        variable = f"AIRFLOW__{name.upper().replace('.', '__')}"
        if name not in AIRFLOW_DIFFERS:
            assert told[variable] == value, name
        elif "Secret" in AIRFLOW_DIFFERS[name]:
            assert variable not in told and variables(documents, "api-server", "api-server")[variable] == REFERRED
        else:
            assert told[variable], name
    assert told["AIRFLOW__CORE__EXECUTOR"] == "KubernetesExecutor"


def test_spark_computes_the_same(properties, tmp_path):
    if jars.missing():
        pytest.skip("the Delta JARs are not here, and without them there are no local settings to compare (make setup)")
    local = spark.spark_conf(Environment.load("local", tmp_path))
    assert set(local) >= SPARK_DIFFERS
    for name, value in local.items():
        if name not in SPARK_DIFFERS:
            assert properties[name] == value, name


def test_spark_lets_in_only_who_has_the_secret_and_encrypts(properties, documents):
    assert properties["spark.connect.grpc.binding.address"] == "127.0.0.1", "TLS ends in the same pod"
    assert properties["spark.authenticate.secret.file"] == "/etc/moeline/spark-secret/auth-secret"
    assert properties["spark.network.crypto.enabled"] == "true", "SASL's DIGEST-MD5 is no cipher for a network"
    assert "spark.connect.authenticate.token" not in properties
    told = variables(documents, "spark-connect", "spark-connect")
    assert told["SPARK_CONNECT_AUTHENTICATE_TOKEN"] == REFERRED


def test_an_executor_is_as_large_as_its_template_says(properties, documents):
    (pod,) = [p for p in chart.pods(documents) if p.component == "spark-executor"]
    size = pod.containers[0]["resources"]["requests"]
    memory = sum(int(properties[name].removesuffix("m")) for name in ("spark.executor.memory", "spark.executor.memoryOverhead"))
    assert chart.amount(size["memory"]) == memory * 2**20
    assert chart.amount(size["cpu"]) == float(properties["spark.executor.cores"]) == float(properties["spark.kubernetes.executor.limit.cores"])
    assert pod.containers[0]["name"] == properties["spark.kubernetes.executor.podTemplateContainerName"]


def test_ray_is_told_the_same(documents, tmp_path):
    local = engines.ray_environment(Environment.load("local", tmp_path))
    assert set(local) >= RAY_DIFFERS
    for component in ("ray-head", "ray-worker"):
        told = variables(documents, component, "ray")
        assert {name: told.get(name) for name in local if name not in RAY_DIFFERS and name != "RAY_AUTH_MODE"} == {
            name: value for name, value in local.items() if name not in RAY_DIFFERS and name != "RAY_AUTH_MODE"
        }
    assert chart.named(documents, "RayCluster", "moeline-ray")["spec"]["authOptions"] == {"mode": local["RAY_AUTH_MODE"]}, "KubeRay sets it and the token"


def test_ray_in_the_images_is_the_one_the_operator_expects(documents):
    locked = next(line for line in (chart.REPO / "requirements.lock").read_text().splitlines() if line.startswith("ray=="))
    assert locked.split()[0] == f"ray=={chart.named(documents, 'RayCluster', 'moeline-ray')['spec']['rayVersion']}"


def test_only_launching_stages_have_rays_token_and_they_wait_for_machines(documents):
    for pod in chart.pods(documents):
        if pod.component == "stage":
            names = {v["name"] for v in pod.containers[0]["env"]}
            assert ({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"} <= names) == (
                pod.where.split("/")[1] in ("train.yaml", "forecast.yaml")
            )


def test_mlflow_is_told_the_same_and_asks_for_its_password(documents, tmp_path):
    env = Environment.load("local", tmp_path)
    local = engines.mlflow_server(env, port=5000, database_url="x", needs=(), stamp_folder=tmp_path, common={})
    told = variables(documents, "mlflow", "mlflow")
    differs = {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_SERVER_ALLOWED_HOSTS"}
    assert {k: told[k] for k in local.env if k not in differs} == {k: v for k, v in local.env.items() if k not in differs}
    assert told["MLFLOW_BACKEND_STORE_URI"] == REFERRED
    command = chart.named(documents, "Deployment", "moeline-mlflow")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "jobs.services.platform.mlflow_server"]
    assert command[5] == Environment.load("cluster").services["mlflow_password_file"]


def test_the_addresses_of_the_environment_are_services_of_the_chart(documents):
    given = Environment.load("cluster").services
    offered = {f"{d['metadata']['name']}:{port['port']}" for d in documents if d["kind"] == "Service" for port in d["spec"]["ports"]}
    offered.add("moeline-ray-head-svc:10001")  # made by KubeRay: <RayCluster>-head-svc, and Ray's port for clients
    addresses = {key: urlsplit(given[key]).netloc for key in ("spark_remote", "ray_address", "mlflow_uri")}
    assert set(addresses.values()) <= offered
    assert given["mlflow_user"] == USER
    allowed = variables(documents, "mlflow", "mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert addresses["mlflow_uri"] in allowed
    assert "token" not in given["spark_remote"] and "use_ssl=true" in given["spark_remote"]
