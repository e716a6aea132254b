"""Another user of the same machine, for real: nothing of the platform is readable or callable without a password. Needs root, to become somebody else."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from running_platform import family

from jobs.environment import REPO
from jobs.services.platform import record

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user"),
]
GRPC_SETTINGS = "\x04"  # type of the frame that opens HTTP/2
CALLS = (  # one of every gRPC service there is: reading what runs, starting work, running a query
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo", "/ray.rpc.InternalKVGcsService/InternalKVGet", "/ray.rpc.ActorInfoGcsService/RegisterActor",
    "/ray.rpc.NodeManagerService/RequestWorkerLease", "/ray.rpc.NodeManagerService/GetNodeStats", "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.RuntimeEnvService/GetOrCreateRuntimeEnv", "/ray.rpc.ObjectManagerService/Pull", "/ray.rpc.ReporterService/GetTraceback",
    "/spark.connect.SparkConnectService/AnalyzePlan", "/spark.connect.SparkConnectService/Config",
)  # fmt: skip
# What a stranger gets without a password: reads and connections are tried by a process of another user.
_TRY = """
import json, os, socket, sys
asked = json.load(sys.stdin)
b"".decode("latin-1"), socket.inet_aton("127.0.0.1"), "".encode("idna")  # codecs are files too, and after the next line out of reach
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
found = {"uid": os.getuid(), "read": [], "listed": [], "tcp": {}, "unix": []}

def tried(names, attempt, into):
    for name in names:
        try:
            attempt(name)
            found[into].append(name)
        except OSError:
            pass

def reached(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)

def rest(client):
    try:
        return client.recv(4000)
    except OSError:
        return b""

def said(port, text):
    try:
        with socket.socket() as client:
            client.settimeout(5)
            client.connect(("127.0.0.1", port))
            client.sendall(text)
            heard = client.recv(4000)
            client.settimeout(1)
            while len(heard) < 4000 and (more := rest(client)):
                heard += more
            return heard.decode("latin-1")
    except OSError as error:
        return type(error).__name__

tried(asked["files"], lambda path: open(path, "rb").read(1), "read")
tried(asked["folders"], os.listdir, "listed")
tried(asked["sockets"], reached, "unix")
for name, port, text in asked["ports"]:
    found["tcp"][f"{name} {port}"] = said(port, bytes.fromhex(text))
print(json.dumps(found))
"""


def as_nobody(**asked: list[Any]) -> dict[str, Any]:
    everything = {name: asked.get(name, []) for name in ("files", "folders", "sockets", "ports")}
    command = [sys.executable, "-I", "-c", _TRY]
    done = subprocess.run(command, input=json.dumps(everything), capture_output=True, text=True, check=False, timeout=300, cwd="/", env={})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["uid"] != os.getuid()
    return found


def processes(home: Path) -> list[tuple[str, psutil.Process]]:
    services = record.read_record(home)["services"]
    return [(name, process) for name, entry in services.items() if entry["pid"] for process in family(entry)]


def test_another_user_reads_nothing(platform) -> None:
    home = platform.home
    files = [str(path) for path in home.rglob("*") if path.is_file()]
    folders = [str(home), *(str(path) for path in home.iterdir() if path.is_dir())]
    sockets = [str(path) for path in home.rglob("*") if path.is_socket()]
    assert len(files) > 100 and len(sockets) >= 3
    found = as_nobody(files=files, folders=folders, sockets=sockets)
    assert (found["read"], found["listed"], found["unix"]) == ([], [], [])


def test_what_the_services_hold_open_elsewhere_is_nobodys_either(platform) -> None:
    """Temporary files and shared memory: everything open outside the home, the checkout and the system's own folders."""
    ours = (str(platform.home), str(REPO), sys.prefix, sys.base_prefix, "/usr", "/lib", "/etc", "/proc", "/sys", "/dev/null", "/dev/urandom")
    held = {file.path for _, process in processes(platform.home) for file in process.open_files() if not file.path.startswith(ours)}
    found = as_nobody(files=sorted(held))
    assert found["read"] == []


def test_another_user_calls_nothing(platform) -> None:
    """Every port answers a stranger with a refusal; Airflow's with its sign-in page, which holds nothing."""
    listening = sorted(
        {(name, c.laddr.port) for name, process in processes(platform.home) for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    )
    assert {name for name, _ in listening} >= {"airflow-api-server", "mlflow", "spark-connect", "ray-head"}
    hello = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".hex()
    said = as_nobody(ports=[(name, port, hello) for name, port in listening])["tcp"]
    assert len(said) == len(listening)
    refused = {where: what for where, what in said.items() if what.startswith(("HTTP/1.1 401", "HTTP/1.1 403"))}
    grpc = {where: refusals(int(where.split()[1])) for where, what in said.items() if what[3:4] == GRPC_SETTINGS}
    silent = {where for where, what in said.items() if what in ("", "ConnectionResetError", "TimeoutError")}
    page = {where for where, what in said.items() if where.startswith("airflow-api-server ") and "<title>Airflow</title>" in what and len(what) < 1000}
    gone = {where for where, what in said.items() if what == "ConnectionRefusedError"}  # Ray ends a worker it does not need
    # Spark's Python daemons have sockets in a folder of our own: on ports they would fork for every caller, and say the number of the process.
    understood = refused.keys() | grpc.keys() | silent | page | gone
    assert said.keys() == understood, {where: what for where, what in said.items() if where not in understood}
    assert {where.split()[0] for where in refused} == {"mlflow", "ray-head"} and len(page) == 1
    assert {where.split()[0] for where in silent} <= {"spark-connect"}, "Spark's blocks and files: the next test"
    assert all("OK" not in codes for codes in grpc.values()), grpc
    assert {where.split()[0] for where, codes in grpc.items() if "UNAUTHENTICATED" in codes} == {"ray-head", "spark-connect"}


def refusals(port: int) -> set[str]:
    """What a gRPC server says to calls without a token."""
    import grpc

    said = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in CALLS:
            try:
                channel.unary_unary(method)(b"", timeout=10)
                said.add("OK")
            except grpc.RpcError as error:
                said.add(error.code().name)
    return said


def test_sparks_blocks_are_not_for_everybody(platform) -> None:
    """Spark's own protocol (a frame with an RPC request) without the secret: refused before the request is looked at."""
    body = b"x" * 10
    request = struct.pack(">BqI", 3, 1, len(body)) + body
    frame = struct.pack(">q", 8 + len(request)) + request
    ports = sorted(
        {c.laddr.port for name, p in processes(platform.home) if name == "spark-connect" for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    )
    said = as_nobody(ports=[("spark", port, frame.hex()) for port in ports])["tcp"]
    answers = [what for what in said.values() if "org.apache.spark" in what]
    assert answers and all("Expected SaslMessage" in what for what in answers), said
