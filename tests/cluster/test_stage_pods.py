"""One task is one pod of its stage's size: the DAG files name the chart's templates, and Airflow's Kubernetes executor makes of them what was meant."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator

import chart
import pytest
import yaml

from jobs.config import STAGES


@pytest.fixture
def stage_task(monkeypatch):
    monkeypatch.syspath_prepend(str(chart.REPO / "dags"))
    return importlib.import_module("stage_task")


@pytest.fixture
def on_kubernetes(monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "KubernetesExecutor")
    monkeypatch.setenv("AIRFLOW__MOELINE__POD_TEMPLATES", "/etc/moeline/pods")


def stages_of_dags() -> Iterator[str]:
    """Names of the tasks that are stages, as the DAG files write them."""
    for file in sorted((chart.REPO / "dags").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("StageOperator", "PlanOperator", "TrainOperator"):
                yield next(k.value.value for k in node.keywords if k.arg == "task_id")


def test_every_stage_of_the_dags_has_a_pod(documents):
    templates = set(chart.named(documents, "ConfigMap", "moeline-stage-pods")["data"])
    stages = list(stages_of_dags())
    assert sorted(stages) == sorted(["plan", *STAGES])
    assert templates == {f"{name}.yaml" for name in [*stages, "default"]}


def test_on_one_machine_nothing_changes(stage_task, monkeypatch):
    monkeypatch.setenv("AIRFLOW__MOELINE__POD_TEMPLATES", "/etc/moeline/pods")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    assert stage_task.pod_of("clean") == {}
    assert not stage_task.StageOperator(task_id="clean").executor_config
    assert "kubernetes" not in sys.modules or "airflow.providers.cncf.kubernetes" in sys.modules


def test_without_templates_the_executors_own_is_used(stage_task, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "KubernetesExecutor")
    assert stage_task.pod_of("clean") == {}


def test_on_kubernetes_a_task_names_the_pod_of_its_stage(stage_task, on_kubernetes):
    assert stage_task.StageOperator(task_id="train").executor_config == {"pod_template_file": "/etc/moeline/pods/train.yaml"}


def test_the_scheduler_finds_the_templates_where_tasks_name_them(documents, on_kubernetes, stage_task):
    told = chart.named(documents, "ConfigMap", "moeline-airflow")["data"]
    folder = told["AIRFLOW__MOELINE__POD_TEMPLATES"]
    assert told["AIRFLOW__KUBERNETES_EXECUTOR__POD_TEMPLATE_FILE"] == f"{folder}/default.yaml"
    pod = chart.named(documents, "Deployment", "moeline-scheduler")["spec"]["template"]["spec"]
    (name,) = [m["name"] for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == folder]
    assert next(v for v in pod["volumes"] if v["name"] == name)["configMap"] == {"name": "moeline-stage-pods"}


@pytest.mark.parametrize("stage", ["clean", "evaluate", "train"])
def test_airflow_makes_the_pod_that_was_meant(documents, tmp_path, stage):
    """The provider's own merge of the template with what it adds: the command, labels, a name."""
    generator = pytest.importorskip("airflow.providers.cncf.kubernetes.pod_generator", reason="Airflow's Kubernetes provider is not installed here")
    from kubernetes.client import ApiClient

    text = chart.named(documents, "ConfigMap", "moeline-stage-pods")["data"][f"{stage}.yaml"]
    file = tmp_path / f"{stage}.yaml"
    file.write_text(text)
    made = generator.PodGenerator.construct_pod(
        dag_id="build_model", task_id=stage, pod_id=f"build-model-{stage}-x", try_number=2, kube_image=None, date=None, run_id="manual__1",
        args=["python", "-m", "airflow.sdk.execution_time.execute_workload", "--json-string", "{}"], pod_override_object=None,
        base_worker_pod=generator.PodGenerator.deserialize_model_file(str(file)), namespace="models", scheduler_job_id="1",
    )  # fmt: skip
    found, meant = ApiClient().sanitize_for_serialization(made), yaml.safe_load(text)
    (base,) = found["spec"]["containers"]
    (template,) = meant["spec"]["containers"]
    assert base["args"][:2] == ["python", "-m"] and "command" not in base
    assert {key: base[key] for key in ("image", "resources", "securityContext", "envFrom", "volumeMounts")} == {
        key: template[key] for key in ("image", "resources", "securityContext", "envFrom", "volumeMounts")
    }
    assert {v["name"] for v in template["env"]} < {v["name"] for v in base["env"]}
    assert {k: v for k, v in found["spec"].items() if k != "containers"} == {k: v for k, v in meant["spec"].items() if k != "containers"}
    assert found["metadata"]["labels"].items() >= meant["metadata"]["labels"].items(), "or the network policies would not know it"
