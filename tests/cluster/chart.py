"""The chart as a cluster would get it: helm and the validator built from pinned Go modules, manifests rendered, pods found in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
CHART = REPO / "infra" / "cluster"
CLUSTER_TOML = REPO / "infra" / "env" / "cluster.toml"
MODULE = Path(__file__).parent / "validate"
KUBERNETES = "1.34.0"  # whose manifests are made; helm as its module builds it thinks of 1.20
_NO_MODULES = re.compile(r"dial tcp|no such host|i/o timeout|connection refused|module lookup disabled|TLS handshake|requires go >=|toolchain not available")
LONG_RUNNING = ("Deployment", "RayCluster")


@dataclass(frozen=True)
class Tools:
    helm: Path
    validate: Path
    schemas: Path  # KubeRay's CustomResourceDefinitions, as they lie in its Go module

    def render(self, *arguments: str, environment: str | None = None, folder: Path | None = None, chart: Path = CHART) -> str:
        """The manifests of the chart; what helm says when it refuses is the message of a Refused."""
        command = [str(self.helm), "template", "moeline", str(chart), "--namespace", "models", "--kube-version", KUBERNETES, *arguments]
        if environment is not None:
            assert folder is not None
            file = folder / "environment.toml"
            file.write_text(environment)
            command += ["--set-file", f"environment={file}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def check(self, manifests: str) -> dict[str, Any]:
        """``kinds`` (kind -> how many) and ``problems``, a sentence each."""
        done = subprocess.run([str(self.validate), "-crds", str(self.schemas)], input=manifests, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)
        assert bool(found["problems"]) == bool(done.returncode)
        return found


class Refused(Exception):
    pass


def build(folder: Path) -> Tools:
    """Both programs from tests/cluster/validate (go.mod pins, go.sum verifies); skips where there is no Go, or no way to its modules."""
    if not (go := shutil.which("go")):
        pytest.skip("there is no Go on this machine, so helm and the validator cannot be built (go.dev, 1.25 or later)")
    variables = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}

    def call(*arguments: str) -> str:
        done = subprocess.run([go, *arguments], cwd=MODULE, env=variables, capture_output=True, text=True, check=False)
        if done.returncode and _NO_MODULES.search(done.stderr):
            pytest.skip(f"the Go modules of helm and the validator cannot be had here: {done.stderr.strip().splitlines()[-1][:300]}")
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    call("build", "-mod=readonly", "-buildvcs=false", "-o", f"{folder}/", ".", "helm.sh/helm/v3/cmd/helm")
    operator = call("list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "github.com/ray-project/kuberay/ray-operator")
    return Tools(folder / "helm", folder / "validate", Path(operator) / "config" / "crd" / "bases")


@dataclass(frozen=True)
class Pod:
    """A pod template. ``owner``: kind of what makes it; ``where``: its place, to tell."""

    where: str
    owner: str
    metadata: dict[str, Any]
    spec: dict[str, Any]

    @property
    def component(self) -> str:
        return self.metadata["labels"]["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec["containers"], *self.spec.get("initContainers", ())]


def load(manifests: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(manifests) if document]


def embedded(documents: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Pod templates inside ConfigMaps, which become pods later: name of the file -> text."""
    return {
        f"{d['metadata']['name']}/{name}": text
        for d in documents if d["kind"] == "ConfigMap" for name, text in d["data"].items() if name.endswith(".yaml")
    }  # fmt: skip


def everything(manifests: str) -> str:
    """The manifests and the pod templates inside them, as one stream for the validator."""
    return "\n---\n".join([manifests, *embedded(load(manifests)).values()])


def pods(documents: Sequence[dict[str, Any]]) -> Iterator[Pod]:
    """Every pod that the chart or what it configures will make."""
    for where, text in embedded(documents).items():
        found = yaml.safe_load(text)
        yield Pod(where, "Pod", found["metadata"], found["spec"])
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            yield Pod(name, "Deployment", template["metadata"], template["spec"])
        elif document["kind"] == "RayCluster":
            groups = {"head": document["spec"]["headGroupSpec"], **{g["groupName"]: g for g in document["spec"]["workerGroupSpecs"]}}
            for group, spec in groups.items():
                yield Pod(f"{name} {group}", "RayCluster", spec["template"]["metadata"], spec["template"]["spec"])


def named(documents: Sequence[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def amount(quantity: str | int | float) -> float:
    """A Kubernetes quantity as a number: cores, bytes or pieces."""
    text = str(quantity)
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
