"""Spark Connect with the chart's own properties behind the chart's own TLS, and a stage's session on it: only the master is local instead of Kubernetes."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import chart
import pyspark
import pytest
from test_tls_front import certificate, free_port

from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import jars
from jobs.services.java import find_java

pytestmark = pytest.mark.integration
START_SECONDS = 180.0
_STAGE = """
import sys
from pathlib import Path
from jobs.environment import Environment
from jobs.services import spark
session = spark.session(Environment.load(sys.argv[1], sys.argv[2]), "stage")
session.range(100).write.format("delta").save(sys.argv[2] + "/table")
read = spark.read_table(session, sys.argv[2] + "/table", 0)
print("SUM", read.groupBy().sum("id").collect()[0][0], session.conf.get("spark.sql.session.timeZone"))
"""


def listens(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.3)


@pytest.fixture
def there(documents, tmp_path):
    """(port of the TLS, token, ca.crt) of a server with the chart's properties."""
    if jars.missing():
        pytest.skip("the Delta JARs are not here (make setup)")
    try:
        java = find_java()
    except MoelineError as missing:
        pytest.skip(str(missing))
    plain, tls, token = free_port(), free_port(), secrets.token_hex(16)
    text = chart.named(documents, "ConfigMap", "moeline-spark")["data"]["server.properties"]
    properties = dict(line.split(" ", maxsplit=1) for line in text.strip().splitlines())
    # Spark takes its secret from a file on Kubernetes only, and says so; a local one makes its own.
    only_there = ("spark.kubernetes.", "spark.dynamicAllocation.", "spark.authenticate.secret.")
    properties = {key: value for key, value in properties.items() if not key.startswith(only_there)} | {
        "spark.master": "local[2]", "spark.driver.memory": "1g", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.port": "0", "spark.driver.blockManager.port": "0", "spark.blockManager.port": "0", "spark.connect.grpc.binding.port": str(plain),
        "spark.local.dir": str(tmp_path), "spark.sql.warehouse.dir": str(tmp_path / "w"),
        "spark.sql.execution.pyspark.python": sys.executable, "spark.jars": ",".join(str(jar) for jar in sorted(jars.JARS.glob("*.jar"))),
    }  # fmt: skip
    (tmp_path / "server.properties").write_text("".join(f"{key} {value}\n" for key, value in properties.items()))
    home = Path(pyspark.__file__).parent
    variables = {**os.environ, "JAVA_HOME": str(java.home), "SPARK_HOME": str(home), "SPARK_CONNECT_AUTHENTICATE_TOKEN": token, "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [str(home / "bin" / "spark-submit"), "--properties-file", str(tmp_path / "server.properties")]
    command += ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"]
    log = tmp_path / "log"
    trusted = certificate(tmp_path / "tls")
    front = [sys.executable, "-m", "infra.cluster.tls_front", str(tls), str(plain), "--alpn", "h2", "--folder", str(tmp_path / "tls")]
    with log.open("w") as output, contextlib.ExitStack() as both:
        for argv, port in ((command, plain), (front, tls)):
            process = subprocess.Popen(argv, cwd=REPO, env=variables, stdout=output, stderr=subprocess.STDOUT)
            both.callback(process.wait, 60)
            both.callback(process.terminate)
            listens(port, process, log)
        yield tls, token, trusted


def stage(tmp_path: Path, port: int, token: str, trusted: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "there.toml"
    local = (REPO / "infra" / "env" / "local.toml").read_text()
    file.write_text(local + f'\nspark_remote = "sc://localhost:{port}/;use_ssl=true"\n')
    variables = {**os.environ, "PYTHONPATH": str(REPO), "SPARK_CONNECT_AUTHENTICATE_TOKEN": token, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(trusted)}
    command = [sys.executable, "-c", _STAGE, str(file), str(tmp_path / "home")]
    return subprocess.run(command, env=variables, cwd=REPO, capture_output=True, text=True, check=False, timeout=300)


def test_a_stage_writes_and_reads_a_table_and_a_stranger_does_not(there, tmp_path):
    port, token, trusted = there
    done = stage(tmp_path, port, token, trusted)
    assert done.stdout.split()[-3:] == ["SUM", "4950", "UTC"], done.stderr[-2000:]
    stranger = stage(tmp_path, port, "another", trusted)
    assert stranger.returncode and "MoelineError: The Spark Connect server" in stranger.stderr, stranger.stderr[-1500:]
    assert not [said for said in (done.stderr, stranger.stderr) if token in said]
