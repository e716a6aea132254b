"""Every pod that the chart makes: hardened, sized as it is paid for, probed, pinned; secrets only by reference."""

from __future__ import annotations

import re
from dataclasses import asdict

import chart
import pytest
import yaml

from jobs.config import STAGES
from jobs.environment import Environment

LAUNCHED_ON_RAY = ("train", "forecast")
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


@pytest.fixture(scope="module")
def pods(documents):
    return list(chart.pods(documents))


def size_of(container) -> dict[str, float]:
    return {name: chart.amount(quantity) for name, quantity in container["resources"]["requests"].items()}


def priced(resources, parts: int = 1) -> dict[str, float]:
    """What a pod of [resources.<stage>] holds."""
    gpus = {"nvidia.com/gpu": resources.gpus / parts} if resources.gpus else {}
    return {"cpu": resources.cores / parts, "memory": resources.memory_gib / parts * 2**30, **gpus}


def test_no_pod_may_more_than_it_needs(pods):
    assert len(pods) == 23
    for pod in pods:
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] >= 10000, pod.where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        for container in pod.containers:
            assert container["securityContext"] == RESTRICTED, (pod.where, container["name"])
        for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
            assert forbidden not in pod.spec
        assert not [v for v in pod.spec["volumes"] if "hostPath" in v]


def test_only_what_asks_kubernetes_has_a_token_for_it(pods):
    given = {pod.component for pod in pods if pod.spec["automountServiceAccountToken"]}
    assert given == {"api-server", "scheduler", "spark-connect", "ray-head"}


def test_what_must_be_written_can_be(pods):
    for pod in pods:
        volumes = {v["name"]: v for v in pod.spec["volumes"]}
        for container in pod.containers:
            mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
            assert {m["name"] for m in mounts.values()} <= set(volumes), pod.where
            if container["name"] != "tls-front":  # keeps nothing
                assert "emptyDir" in volumes[mounts["/tmp"]["name"]]  # noqa: S108 - a mount
                assert volumes[mounts["/var/lib/moeline"]["name"]]["persistentVolumeClaim"]["claimName"] == "moeline-home"
            assert all(m.get("readOnly") for path, m in mounts.items() if path.startswith("/etc/")), pod.where


def test_every_container_has_its_size_and_holds_no_more_than_it_asked_for(pods):
    for pod in pods:
        for container in pod.containers:
            assert container["resources"]["requests"] == container["resources"]["limits"], pod.where
            assert {"cpu", "memory"} <= set(size_of(container))


def test_what_runs_on_is_probed(pods):
    for pod in pods:
        running = pod.containers if pod.owner in chart.LONG_RUNNING else []
        for container in running:
            if container["name"] not in ("migrate", "wait-for-migration"):
                assert "livenessProbe" in container, (pod.where, container["name"])
                assert container["name"] in ("tls-front", "scheduler", "dag-processor", "triggerer") or "readinessProbe" in container, pod.where


def test_images_are_those_of_the_values_and_pinned(tools, pods):
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())["images"]
    known = {f"{values[name]['repository']}:{values[name]['tag']}" for name in ("control", "spark", "train")}
    assert {container["image"] for pod in pods for container in pod.containers} == known
    digest = f"sha256:{'ab' * 32}"
    pinned = tools.render(*(part for name in ("control", "spark", "train") for part in ("--set", f"images.{name}.digest={digest}")))
    assert {c["image"] for pod in chart.pods(chart.load(pinned)) for c in pod.containers} == {f"{image.partition(':')[0]}@{digest}" for image in known}
    assert f"spark.kubernetes.container.image moeline-spark@{digest}" in pinned


def test_the_environment_in_the_pods_is_the_file_that_was_priced(documents, tmp_path):
    text = chart.named(documents, "ConfigMap", "moeline-environment")["data"]["cluster.toml"]
    assert text.rstrip() == chart.CLUSTER_TOML.read_text().rstrip()
    (tmp_path / "cluster.toml").write_text(text)
    there, here = Environment.load(str(tmp_path / "cluster.toml"), tmp_path), Environment.load("cluster", tmp_path)
    assert (there.name, there.resources, there.services, there.budgets) == ("cluster", here.resources, here.services, here.budgets)
    assert all(here.prices.hourly(here.stage_resources(stage)) > 0 for stage in STAGES), "a stage without a price would not start"


def test_a_stage_holds_what_it_pays_for(documents, pods):
    env = Environment.load("cluster")
    found = {pod.where.removeprefix("moeline-stage-pods/").removesuffix(".yaml"): pod for pod in pods if pod.component == "stage"}
    assert set(found) == {"default", "plan", *STAGES}
    for stage, pod in found.items():
        (container,) = pod.containers
        held = env.resources["default"] if stage in LAUNCHED_ON_RAY else env.stage_resources(stage)
        assert size_of(container) == pytest.approx(priced(held)), stage
        on_gpu = bool(held.gpus)
        assert container["image"].startswith("moeline-train-gpu" if on_gpu else "moeline-control")
        assert ("tolerations" in pod.spec) == on_gpu


@pytest.mark.parametrize(("gpus", "parts"), [(1, 1), (8, 4)])
def test_a_training_holds_on_ray_what_it_pays_for(tools, tmp_path, gpus, parts):
    text = chart.CLUSTER_TOML.read_text().replace("cores = 22.0\nmemory_gib = 224.0\ngpus = 1.0", f"cores = 22.0\nmemory_gib = 224.0\ngpus = {gpus}.0")
    manifests = tools.render("--set", f"ray.gpu.podsPerTraining={parts},quota.gpus=16", environment=text, folder=tmp_path)
    cluster = chart.named(chart.load(manifests), "RayCluster", "moeline-ray")
    (group,) = [g for g in cluster["spec"]["workerGroupSpecs"] if g["groupName"] == "gpu"]
    env = Environment.load(str(tmp_path / "environment.toml"), tmp_path)
    for stage in LAUNCHED_ON_RAY:
        assert size_of(group["template"]["spec"]["containers"][0]) == pytest.approx(priced(env.stage_resources(stage), parts)), asdict(
            env.stage_resources(stage)
        )
    assert group["numOfHosts"] == parts


def test_gpu_pods_go_to_spot_machines_only_where_asked(tools, documents):
    def placed(found):
        return [pod.spec for pod in chart.pods(found) if any("nvidia.com/gpu" in size_of(c) for c in pod.containers)]

    on_demand = chart.load(tools.render("--set", "gpu.spot.enabled=false"))
    assert len(placed(documents)) == len(placed(on_demand)) == 2, "evaluations and Ray's GPU workers"
    assert all(spec["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"} and len(spec["tolerations"]) == 2 for spec in placed(documents))
    assert all(spec["nodeSelector"] == {} and len(spec["tolerations"]) == 1 for spec in placed(on_demand))


def test_ray_grows_from_nothing_or_stays_as_it_is(tools, documents):
    growing = chart.named(documents, "RayCluster", "moeline-ray")["spec"]
    fixed = chart.named(chart.load(tools.render("--set", "autoscaling.enabled=false")), "RayCluster", "moeline-ray")["spec"]
    assert growing["enableInTreeAutoscaling"] and not fixed["enableInTreeAutoscaling"]
    assert [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in growing["workerGroupSpecs"]] == [(0, 0, 2), (0, 0, 4)]
    assert [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in fixed["workerGroupSpecs"]] == [(2, 2, 2), (4, 4, 4)]


def test_a_queue_takes_the_whole_ray_cluster(tools):
    def labels(*arguments):
        return chart.named(chart.load(tools.render(*arguments)), "RayCluster", "moeline-ray")["metadata"]["labels"]

    assert labels("--set", "ray.gang.scheduler=volcano,ray.gang.queue=q")["volcano.sh/queue-name"] == "q"
    assert labels("--set", "ray.gang.scheduler=kueue,ray.gang.queue=q,autoscaling.enabled=false")["kueue.x-k8s.io/queue-name"] == "q"


def test_secrets_are_named_and_never_written(tools, pods):
    sensitive = re.compile(r"TOKEN$|PASSWORD|SECRET|FERNET|JWT|SQL_ALCHEMY_CONN|STORE_URI|_KEY$")
    referred = set()
    for pod in pods:
        for container in pod.containers:
            for variable in container.get("env", ()):
                source = variable.get("valueFrom", {}).get("secretKeyRef")
                plain = str(variable.get("value", ""))
                assert source or not sensitive.search(variable["name"]) or plain.startswith("/etc/moeline/"), (pod.where, variable)
                referred |= {(source["name"], source["key"])} if source else set()
    assert referred == {
        ("moeline-postgres", "airflow-url"), ("moeline-postgres", "mlflow-url"), ("moeline-airflow", "fernet-key"), ("moeline-airflow", "api-secret-key"),
        ("moeline-airflow", "jwt-secret"), ("moeline-spark", "connect-token"), ("moeline-ray", "auth_token"),
    }  # fmt: skip
    mounted = {v["secret"]["secretName"]: {i["key"] for i in v["secret"]["items"]} for pod in pods for v in pod.spec["volumes"] if "secret" in v}
    assert set(mounted) == {"moeline-tls", "moeline-mlflow", "moeline-spark"}


def test_a_stage_cannot_reach_the_database_nor_sign_for_others(pods):
    """Code of a recipe runs there; Airflow 3's tasks speak to the API server with a token of their own."""
    for pod in pods:
        if pod.component in ("stage", "ray-head", "ray-worker", "spark-executor"):
            text = str(pod.spec)
            assert not [word for word in ("moeline-postgres", "tls.key", "jwt-secret", "fernet-key", "api-secret-key") if word in text], pod.where


def test_the_key_of_the_certificate_is_where_tls_ends(pods):
    holders = {pod.component for pod in pods if "tls.key" in str(pod.spec["volumes"])}
    assert holders == {"api-server", "mlflow", "spark-connect"}
