"""Who may speak to whom: the policies are read as a cluster reads them, and every pair of pods is tried. Quotas are the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chart
import pytest
import yaml

NAMESPACE = {"kubernetes.io/metadata.name": "models"}
ALL = "every port"
FLOWS = {
    ("stage", "api-server"): {8080}, ("stage", "spark-connect"): {15002}, ("stage", "mlflow"): {5000}, ("stage", "ray-head"): {10001},
    ("api-server", "mlflow"): {5000},
    ("spark-executor", "spark-connect"): {7078, 7079}, ("spark-connect", "spark-executor"): {7079}, ("spark-executor", "spark-executor"): {7079},
    ("ray-worker", "ray-head"): {ALL}, ("ray-head", "ray-worker"): {ALL}, ("ray-worker", "ray-worker"): {ALL},
}  # fmt: skip


@pytest.fixture(scope="module")
def policies(documents):
    return [d["spec"] for d in documents if d["kind"] == "NetworkPolicy"]


@pytest.fixture(scope="module")
def labels(documents):
    return {pod.component: pod.metadata["labels"] for pod in chart.pods(documents)}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "this test reads nothing else"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def open_ports(policies, labels, kind: str, *, own: str, peer: str) -> set[Any]:
    """Ports on which pods of ``own`` may take calls from (Ingress) or make calls to (Egress) pods of ``peer``; ALL where no policy restrains them."""
    mine = [p for p in policies if kind in p["policyTypes"] and selects(p["podSelector"], labels[own])]
    if not mine:
        return {ALL}
    found: set[Any] = set()
    for policy in mine:
        for rule in policy.get(kind.lower()) or ():
            peers = rule.get("from" if kind == "Ingress" else "to") or [{"podSelector": {}}]
            if any("podSelector" in one and "namespaceSelector" not in one and selects(one["podSelector"], labels[peer]) for one in peers):
                found |= {port["port"] for port in rule["ports"]} if "ports" in rule else {ALL}
    return found


def test_every_pair_of_pods_may_speak_as_listed_and_not_otherwise(policies, labels):
    assert len(labels) == 10
    for source in labels:
        for target in labels:
            out = open_ports(policies, labels, "Egress", own=source, peer=target)
            into = open_ports(policies, labels, "Ingress", own=target, peer=source)
            assert out == into == FLOWS.get((source, target), set()), (source, target)


def test_a_pod_of_nobody_gets_nothing(policies):
    labels = {"stranger": {"app": "x"}}
    assert open_ports(policies, labels, "Ingress", own="stranger", peer="stranger") == set()
    assert open_ports(policies, labels, "Egress", own="stranger", peer="stranger") == set()


def test_a_missing_default_would_be_seen(policies, labels):
    without = [p for p in policies if p["podSelector"] or p["policyTypes"] != ["Ingress", "Egress"]]
    assert len(without) == len(policies) - 1
    assert open_ports(without, {**labels, "stranger": {}}, "Ingress", own="stranger", peer="stage") == {ALL}


def test_every_service_can_be_called_where_it_listens(documents, labels):
    """A Service leads to a port that its pods have, and somebody may call it."""
    containers = {pod.component: pod.containers for pod in chart.pods(documents)}
    services = [d for d in documents if d["kind"] == "Service"]
    assert len(services) == 4
    for service in services:
        target = service["spec"]["selector"]["app.kubernetes.io/component"]
        listens = {name: p["containerPort"] for c in containers[target] for p in c.get("ports", ()) for name in (p["name"], p["containerPort"])}
        for port in service["spec"]["ports"]:
            assert listens[port["targetPort"]] == port["port"]
            assert any(to == target and port["port"] in ports for (_, to), ports in FLOWS.items()), service["metadata"]["name"]


def outside(policies, labels, component: str) -> set[tuple[str, int]]:
    found = set()
    for policy in policies:
        if selects(policy["podSelector"], labels[component]):
            for rule in policy.get("egress") or ():
                blocks = [to["ipBlock"]["cidr"] for to in rule["to"] if "ipBlock" in to]
                found |= {(cidr, port["port"]) for cidr in blocks for port in rule["ports"]}
    return found


@pytest.mark.parametrize(
    ("old", "new", "more"),
    [('landing = "landing"', 'landing = "https://zone.example/landing"', ()), ("[paths]", '[paths]\ntables = "s3://bucket/tables"', ("api-server",))],
)
def test_the_database_kubernetes_and_a_store_are_reached_by_those_who_need_them(tools, tmp_path, labels, old, new, more):
    text = chart.CLUSTER_TOML.read_text().replace(old, new)
    sets = ["postgres.cidrs={10.1.0.5/32}", "network.kubernetesApi.cidrs={10.2.0.1/32}", "network.kubernetesApi.ports={443}"]
    sets.append("store.egress[0].cidr=203.0.113.0/24,store.egress[0].port=443")
    manifests = tools.render(*(part for one in sets for part in ("--set", one)), environment=text, folder=tmp_path)
    policies = [d["spec"] for d in chart.load(manifests) if d["kind"] == "NetworkPolicy"]
    reached = {name: outside(policies, labels, name) for name in labels}
    database, kubernetes, zone = ("10.1.0.5/32", 5432), ("10.2.0.1/32", 443), ("203.0.113.0/24", 443)
    expected = {
        "api-server": {database, kubernetes}, "scheduler": {database, kubernetes}, "dag-processor": {database}, "triggerer": {database}, "mlflow": {database},
        "stage": {zone}, "spark-connect": {kubernetes, zone}, "spark-executor": {zone}, "ray-head": {kubernetes}, "ray-worker": set(),
    }  # fmt: skip
    assert reached == {name: found | ({zone} if name in more else set()) for name, found in expected.items()}


def test_people_come_in_by_airflow_and_mlflow_only(policies):
    doors = {
        (policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"], port["port"])
        for policy in policies for rule in policy.get("ingress") or () for peer in rule["from"] if "namespaceSelector" in peer for port in rule["ports"]
    }  # fmt: skip
    assert doors == {("api-server", 8080), ("mlflow", 5000)}


def test_the_quota_is_what_the_values_say(tools):
    asked = {"cores": 300, "memoryGib": 2000, "gpus": 9, "pods": 50, "storageGib": 700}
    found = chart.load(tools.render("--set", ",".join(f"quota.{name}={value}" for name, value in asked.items())))
    assert chart.named(found, "ResourceQuota", "moeline")["spec"]["hard"] == {
        "requests.cpu": "300", "limits.cpu": "300", "requests.memory": "2000Gi", "limits.memory": "2000Gi", "requests.nvidia.com/gpu": "9", "pods": "50",
        "requests.storage": "700Gi",
    }  # fmt: skip


def test_the_quota_of_the_defaults_lets_everything_run_at_once(documents):
    """All servers, Spark's and Ray's largest, and as many of the largest CPU stages as Airflow starts at once."""
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    times = {"spark-executor": values["spark"]["executor"]["max"], "ray-worker": 0, "stage": 0}
    held = {"cpu": 0.0, "memory": 0.0}
    for pod in chart.pods(documents):
        for container in pod.containers:
            for name in held:
                held[name] += chart.amount(container["resources"]["requests"][name]) * times.get(pod.component, 1)
    for group in chart.named(documents, "RayCluster", "moeline-ray")["spec"]["workerGroupSpecs"]:
        for name in held:
            held[name] += chart.amount(group["template"]["spec"]["containers"][0]["resources"]["requests"][name]) * group["maxReplicas"]
    stages = [p for p in chart.pods(documents) if p.component == "stage" and "moeline-control" in p.containers[0]["image"]]
    for name in held:
        held[name] += max(chart.amount(p.containers[0]["resources"]["requests"][name]) for p in stages) * values["airflow"]["parallelism"]
    hard = chart.named(documents, "ResourceQuota", "moeline")["spec"]["hard"]
    assert held["cpu"] <= chart.amount(hard["requests.cpu"])
    assert held["memory"] <= chart.amount(hard["requests.memory"])
