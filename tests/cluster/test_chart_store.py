"""Landing zone or tables in a bucket: which containers get its keys, what Spark and our code are told of it, and that nobody else hears of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chart
import fsspec
import pytest

from infra.images import spark_executor
from jobs.environment import Environment
from jobs.services import table_store

TABLES, LANDING = ("[paths]", '[paths]\ntables = "s3://bucket/tables"'), ('landing = "landing"', 'landing = "s3://bucket/landing"')
WAY = "store.egress[0].cidr=203.0.113.0/24,store.egress[0].port=443"
KEYS, PLACE = "store.existingSecret=keys", "store.endpoint=https://s3.example,store.region=eu-west-1"
REGION = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"}
TOLD = {**REGION, "FSSPEC_S3_ENDPOINT_URL": "https://s3.example"}
JVM = {name: ("keys", key) for name, key in {"AWS_ACCESS_KEY_ID": "FSSPEC_S3_KEY", "AWS_SECRET_ACCESS_KEY": "FSSPEC_S3_SECRET",
                                             "AWS_SESSION_TOKEN": "FSSPEC_S3_TOKEN"}.items()}  # fmt: skip
WHOLE = {"whole": "keys"}


def rendered(tools, tmp_path, path: tuple[str, str], *values: str) -> list[dict[str, Any]]:
    return chart.load(tools.render("--set", ",".join((WAY, *values)), environment=chart.CLUSTER_TOML.read_text().replace(*path), folder=tmp_path))


def told(container) -> dict[str, Any]:
    """What a container is told of a store: variables (those from a Secret as its name and key), and the Secret it takes whole."""
    whole = [source["secretRef"]["name"] for source in container.get("envFrom", ()) if "secretRef" in source]
    assert len(whole) <= 1
    found: dict[str, Any] = {"whole": whole[0]} if whole else {}
    for variable in container.get("env", ()):
        if variable["name"].startswith(("AWS_", "FSSPEC_")):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            assert source is None or source["optional"], "keys may come by other names, or by the pods' identity"
            found[variable["name"]] = (source["name"], source["key"]) if source else variable["value"]
    return found


def all_told(documents) -> dict[tuple[str, str], dict[str, Any]]:
    """(component, container) -> what it is told, where it is told anything; all pods of a component are told the same."""
    found: dict[tuple[str, str], list[Any]] = {}
    for pod in chart.pods(documents):
        for container in pod.containers:
            found.setdefault((pod.component, container["name"]), []).append(told(container))
    assert all(one == several[0] for several in found.values() for one in several)
    return {place: several[0] for place, several in found.items() if several[0]}


STAGE, PAGES, SERVER, EXECUTOR = ("stage", "base"), ("api-server", "api-server"), ("spark-connect", "spark-connect"), ("spark-executor", "executor")
CASES: dict[str, tuple[tuple[str, str], tuple[str, ...], dict[tuple[str, str], dict[str, Any]]]] = {
    "tables, keys": (TABLES, (KEYS, PLACE), {
        STAGE: WHOLE | TOLD, PAGES: WHOLE | TOLD, SERVER: WHOLE | TOLD | JVM, EXECUTOR: WHOLE | TOLD | JVM}),
    "tables, the pods' identity": (TABLES, ("store.region=eu-west-1",), dict.fromkeys((STAGE, PAGES, SERVER, EXECUTOR), REGION)),
    "landing zone, keys": (LANDING, (KEYS, PLACE), dict.fromkeys((STAGE, SERVER, EXECUTOR), WHOLE | TOLD)),
    "no bucket, but keys for one": (("", ""), (KEYS, PLACE), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_only_who_opens_the_bucket_is_told_of_it(tools, tmp_path, name):
    path, values, expected = CASES[name]
    assert all_told(rendered(tools, tmp_path, path, *values)) == expected


def test_without_a_bucket_nothing_of_one_appears(manifests, documents):
    assert all_told(documents) == {}
    assert not [word for word in ("s3a", "AWS_", "FSSPEC_", "secretRef:") if word in manifests]


@pytest.mark.parametrize(("values", "given"), [
    ((KEYS, PLACE), {"endpoint_url": "https://s3.example", "client_kwargs": {"region_name": "eu-west-1"}}),
    ((), {}),
])  # fmt: skip
def test_spark_reads_a_bucket_as_on_one_machine(tools, tmp_path, monkeypatch, values, given):
    monkeypatch.setitem(fsspec.config.conf, "s3", given)
    for name in REGION:
        monkeypatch.delenv(name, raising=False)
    wanted = table_store.hadoop_settings(replace(Environment.load("local", tmp_path), tables="s3://bucket/tables"))
    found = chart.named(rendered(tools, tmp_path, TABLES, *values), "ConfigMap", "moeline-spark")["data"]["server.properties"].splitlines()
    assert sorted(line for line in found if line.startswith("spark.hadoop.")) == sorted(f"{name} {value}" for name, value in wanted.items())
    landing = chart.named(rendered(tools, tmp_path, LANDING, *values), "ConfigMap", "moeline-spark")["data"]["server.properties"]
    assert "spark.hadoop." not in landing, "Spark's JVM opens no landing zone"


def test_jvms_get_the_keys_that_they_get_on_one_machine(tmp_path, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "FSSPEC_S3_KEY", "secret": "FSSPEC_S3_SECRET", "token": "FSSPEC_S3_TOKEN"})
    env = replace(Environment.load("local", tmp_path), tables="s3://bucket/tables")
    assert table_store.jvm_variables(env) == {name: key for name, (_, key) in JVM.items()}


def test_an_executor_becomes_java_with_the_variables_of_its_pod(monkeypatch):
    """`exec` without an environment of its own: what the pod was given stays, and no key is on the command line."""
    needed = ["SPARK_HOME", "JAVA_HOME", "SPARK_EXECUTOR_MEMORY", "SPARK_DRIVER_URL", "SPARK_EXECUTOR_ID", "SPARK_EXECUTOR_CORES", "SPARK_APPLICATION_ID",
              "SPARK_EXECUTOR_POD_IP", "SPARK_RESOURCE_PROFILE_ID", "SPARK_EXECUTOR_POD_NAME"]  # fmt: skip
    for name in needed:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2")
    called: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(spark_executor.os, "execv", lambda program, arguments: called.append((program, arguments)))
    monkeypatch.setattr(spark_executor.sys, "argv", ["spark_executor", "executor"])
    spark_executor.main()
    assert called and "hunter2" not in " ".join(called[0][1])
    assert spark_executor.os.environ["AWS_ACCESS_KEY_ID"] == "hunter2"
