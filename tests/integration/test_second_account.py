"""Another user of the same machine, for real: nothing of the platform is readable or callable without a password. Needs root, to become somebody else."""

from __future__ import annotations

import json
import os
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

def said(port, text):
    try:
        with socket.socket() as client:
            client.settimeout(5)
            client.connect(("127.0.0.1", port))
            client.sendall(text)
            return client.recv(4000).decode("latin-1")
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
    listening = sorted(
        {(name, c.laddr.port) for name, process in processes(platform.home) for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    )
    assert {name for name, _ in listening} >= {"airflow-api-server", "mlflow", "spark-connect", "ray-head"}
    hello = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".hex()
    found = as_nobody(ports=[(name, port, hello) for name, port in listening])
    print(json.dumps(found["tcp"], indent=1))
