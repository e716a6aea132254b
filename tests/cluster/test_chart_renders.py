"""The chart renders with the values that people need, a cluster would take every manifest, and wrong values are refused with what to write."""

from __future__ import annotations

import shutil

import chart
import pytest

OWN = chart.CLUSTER_TOML.read_text()
NO_GPU = OWN.replace("gpus = 1.0", "gpus = 0.0").replace('instance = "p5en.48xlarge-spot"', "")
LANDED = OWN.replace('landing = "landing"', 'landing = "s3://bucket/landing"')
EIGHT = OWN.replace("cores = 22.0\nmemory_gib = 224.0\ngpus = 1.0", "cores = 176.0\nmemory_gib = 1600.0\ngpus = 8.0")
STORED = OWN.replace("[paths]", '[paths]\ntables = "s3://bucket/tables"')
ZONE = ("--set", "store.egress[0].cidr=203.0.113.0/24,store.egress[0].port=443", "--set", "store.existingSecret=zone")
VALUE_SETS = {
    "default": ((), OWN),
    "GPUs on demand": (("--set", "gpu.spot.enabled=false"), OWN),
    "autoscaling off": (("--set", "autoscaling.enabled=false"), OWN),
    "gang scheduling by volcano": (("--set", "ray.gang.scheduler=volcano,ray.gang.queue=training"), OWN),
    "gang scheduling by kueue": (("--set", "ray.gang.scheduler=kueue,ray.gang.queue=training,autoscaling.enabled=false"), OWN),
    "landing zone behind a URL": (ZONE, LANDED),
    "tables in a store": ((*ZONE, "--set", "store.endpoint=https://s3.example:9000,store.region=eu-west-1"), STORED),
    "tables in a store, by the pods' own identity": (ZONE[:2], STORED),
    "no GPU": ((), NO_GPU),
    "a training over several pods": (("--set", "ray.gpu.podsPerTraining=4,quota.gpus=16"), EIGHT),
    "ingress, own volume, own registry": (
        ("--set", "ingress.enabled=true,ingress.host=airflow.example,ingress.tlsSecret=airflow", "--set", "home.existingClaim=models",
         "--set", f"images.control.digest=sha256:{'ab' * 32}", "--set", "images.pullSecrets[0]=registry"), OWN),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUE_SETS)
def test_a_cluster_would_take_every_manifest(tools, tmp_path, name):
    arguments, environment = VALUE_SETS[name]
    manifests = tools.render(*arguments, environment=environment, folder=tmp_path)
    found = tools.check(chart.everything(manifests))
    assert found["problems"] is None
    assert found["kinds"]["Pod"] == 14, "a template per stage, one for Airflow's own tasks, one of Spark's executors"
    assert {"Deployment", "RayCluster", "NetworkPolicy", "ResourceQuota"} <= set(found["kinds"])
    assert "Secret" not in found["kinds"]


MISTAKES = {  # (what stands there, what is planted, what is said)
    "unknown field": ("enableServiceLinks: false", "enableServiceLink: false", "unknown field"),
    "wrong type": ("terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: soon", "terminationGracePeriodSeconds"),
    "field twice": ("restartPolicy: Never", "restartPolicy: Never\n  restartPolicy: Always", "already set"),
    "no such kind": ("\nkind: Deployment\n", "\nkind: Deployments\n", "no kind"),
    "root": ("runAsNonRoot: true", "runAsNonRoot: false", "restricted Pod Security"),
    "more privileges": ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "restricted Pod Security"),
    "selects nothing": ("        app.kubernetes.io/component: mlflow", "        app.kubernetes.io/component: mlflows", "does not select"),
    "a quantity that is none": ("storage: 500Gi", "storage: 500GiB", "quantit"),
    "a name that is none": ("\n  name: moeline-mlflow\n", "\n  name: Moeline_Mlflow\n", "lowercase RFC 1123"),
    "Ray: unknown field": ("headGroupSpec:", "headGroup:", "headGroup"),
    "Ray: open to all": ("authOptions: {mode: token}", "authOptions: {mode: open}", "Unsupported value"),
    "Ray: wrong type": ("rayStartParams: {num-cpus: \"0\"", "rayStartParams: {num-cpus: [0]", "rayStartParams"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_refused(tools, manifests, name):
    whole, (there, planted, said) = chart.everything(manifests), MISTAKES[name]
    before, found, after = whole.rpartition(there)  # the last: the first may be text inside a ConfigMap
    assert found
    said_of_it = tools.check(before + planted + after)["problems"] or []
    assert any(said in problem for problem in said_of_it), said_of_it


def test_no_manifest_is_no_success(tools):
    with pytest.raises(AssertionError, match="nothing was given"):
        tools.check("# only a comment\n")


WRONG_VALUES = {
    "postgres.existingSecret=": "postgres.existingSecret is empty: name a Secret of this namespace with the keys airflow-url, mlflow-url",
    "spark.existingSecret=": "connect-token, auth-secret",
    "tls.existingSecret=": "tls.crt, tls.key, ca.crt",
    "postgres.password=hunter2": "additional properties 'password' not allowed",
    "images.control.tag=latest": "what runs would change by itself",
    "images.control.digest=sha256:12": "/images/control/digest",
    "airflow.baseUrl=http://open": "^https://",
    "quota.gpus=0": "would never start. Raise quota or ask for less",
    "quota.cores=none": "/quota/cores",
    "ray.gpu.podsPerTraining=2": "does not divide the 1 GPUs of [resources.train]",
    "ray.gang.scheduler=volcano": "ray.gang.queue: the queue of volcano",
    "ray.gang.scheduler=slurm": "/ray/gang/scheduler",
    "spark.executor.heapGib=16": "leaves Python less than 1",
    "ingress.enabled=true": "ingress.host: the name people open Airflow by",
    "store.endpoint=s3.example": "/store/endpoint",
    "network.kubernetesApi.cidrs=null": "network",
}


@pytest.mark.parametrize("value", WRONG_VALUES)
def test_wrong_values_are_refused_with_what_to_write(tools, value):
    if value == "network.kubernetesApi.cidrs=null":
        value = "network.kubernetesApi.cidrs[0]=everywhere"
    with pytest.raises(chart.Refused) as refused:
        tools.render("--set", value)
    assert WRONG_VALUES.get(value, "/network/kubernetesApi/cidrs/0") in " ".join(str(refused.value).split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[paths\n", "environment is not TOML"),
        ("[paths]\nlanding = 'x'\n", "environment has no table [prices]"),
        (OWN.replace("[resources.default]", "[resources.other]"), "no [resources.default]"),
        (LANDED, "store.egress: the landing zone is s3://bucket/landing"),
        (STORED, "store.egress: the tables are in s3://bucket/tables"),
        (STORED.replace("s3://bucket/tables", "tables"), 'tables = "tables" is no bucket'),
    ],
)
def test_a_wrong_environment_file_is_refused(tools, tmp_path, text, said):
    with pytest.raises(chart.Refused, match=said.replace("[", r"\[").replace("]", r"\]")):
        tools.render(environment=text, folder=tmp_path)


def test_what_is_said_after_the_installation_names_a_price(tools, tmp_path):
    """``helm template`` renders no notes, and a dry run of an installation asks a cluster: so the notes are rendered as a manifest."""
    copy = tmp_path / "chart"
    shutil.copytree(chart.CHART, copy)
    notes = (copy / "templates" / "NOTES.txt").read_text().splitlines()
    (copy / "templates" / "said.yaml").write_text("said: |\n" + "".join(f"  {line}\n" for line in notes))
    (said,) = [d["said"] for d in chart.load(tools.render(chart=copy)) if "said" in d]
    assert "costs at most 18.90 USD an hour" in said
    assert "namespace models" in said
