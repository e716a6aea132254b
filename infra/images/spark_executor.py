"""`python -m infra.images.spark_executor executor`: process 1 of a Spark executor's pod becomes the Java process that Spark means.

Spark on Kubernetes tells an executor's container what to be in variables (SPARK_DRIVER_URL, SPARK_JAVA_OPT_0, ...) and leaves the command to the image.
Spark's own images have a shell script for it; the wheel of pyspark, from which ours is made, has none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

BACKEND = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
_OPTIONS = {
    "--driver-url": "SPARK_DRIVER_URL", "--executor-id": "SPARK_EXECUTOR_ID", "--cores": "SPARK_EXECUTOR_CORES", "--app-id": "SPARK_APPLICATION_ID",
    "--hostname": "SPARK_EXECUTOR_POD_IP", "--resourceProfileId": "SPARK_RESOURCE_PROFILE_ID", "--podName": "SPARK_EXECUTOR_POD_NAME",
}  # fmt: skip
_JAVA_OPTION = "SPARK_JAVA_OPT_"


def command(variables: Mapping[str, str]) -> list[str]:
    """The Java process of an executor. Raises SystemExit naming a variable that Spark did not set."""
    needed = ["SPARK_HOME", "JAVA_HOME", "SPARK_EXECUTOR_MEMORY", *_OPTIONS.values()]
    if missing := [name for name in needed if not variables.get(name)]:
        raise SystemExit(f"Spark makes this pod and says in variables what it is; {', '.join(missing)} are not set.")
    numbered = sorted((int(name.removeprefix(_JAVA_OPTION)), value) for name, value in variables.items() if name.startswith(_JAVA_OPTION))
    memory, home = variables["SPARK_EXECUTOR_MEMORY"], variables["SPARK_HOME"]
    places = [variables.get("SPARK_CONF_DIR") or f"{home}/conf", variables.get("SPARK_EXTRA_CLASSPATH", ""), f"{home}/jars/*"]
    return [
        f"{variables['JAVA_HOME']}/bin/java", *(value for _, value in numbered), f"-Xms{memory}", f"-Xmx{memory}", "-cp", ":".join(filter(None, places)),
        BACKEND, *(part for option, name in _OPTIONS.items() for part in (option, variables[name])),
    ]  # fmt: skip


def main() -> None:
    if sys.argv[1:2] != ["executor"]:
        raise SystemExit(f"Spark asks for executors only, not for {sys.argv[1:]}.")
    made = command(os.environ)
    os.execv(made[0], made)  # noqa: S606 - no shell


if __name__ == "__main__":
    main()
