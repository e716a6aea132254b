"""The supervisor with small real processes: order, restarts, giving up, stopping, and what a killed one leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from running_platform import until

from jobs.environment import PLATFORM_FILE, REPO
from jobs.services import platform
from jobs.services.platform import processes, record, supervisor
from jobs.services.platform.service import Service
from jobs.services.process_identity import is_suspended

# Listens on a Unix socket (its health check) until told to stop.
SERVE = """
import os, signal, socket, sys
path = sys.argv[1]
if os.path.exists(path): os.unlink(path)
s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen()
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[2], "a").write(path[-1]), sys.exit(0)))
while True: s.accept()[0].close()
"""
CHILD = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(120)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + CHILD


def spawn(child: str) -> str:
    """Code of a service that starts a child in a session of its own, then serves."""
    return f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[3]], start_new_session=True)\n{SERVE}"


class Platform:
    """A running supervisor of the given services."""

    def __init__(self, env):
        self.env, self.home = env, env.home
        self.home.mkdir(parents=True)
        self.order = self.home / "order"
        self.process = None

    def service(self, name, code=SERVE, *arguments, **settings):
        socket_path = str(self.home / name)
        argv = (sys.executable, "-c", code, socket_path, str(self.order), *arguments)
        variables = {**os.environ, processes.MARK: str(self.home)}
        return Service(name=name, argv=argv, env=variables, cwd=str(self.home), log=str(self.home / "logs" / name), health={"unix": socket_path}, **settings)

    def start(self, *services):
        plan = {"home": str(self.home), "services": [s.to_json() for s in services], "addresses": {"mlflow_uri": "http://127.0.0.1:1"}}
        record.write_private(self.home / supervisor.PLAN_FILE, json.dumps(plan))
        self.process = subprocess.Popen([sys.executable, "-m", "jobs.services.platform.supervisor", str(self.home)], cwd=REPO, start_new_session=True)
        return self

    def wait(self, name, state, *, restarts=0, seconds=20):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            entry = record.read_record(self.home).get("services", {}).get(name, {})
            if entry.get("state") == state and entry["restarts"] >= restarts:
                return entry
            time.sleep(0.05)
        pytest.fail(f"{name} is not {state}: {record.read_record(self.home)}")


@pytest.fixture
def running(env):
    found = Platform(env)
    yield found
    if found.process is not None:
        found.process.terminate()
        try:
            found.process.wait(20)
        except subprocess.TimeoutExpired:
            found.process.kill()
            found.process.wait()
    processes.end(processes.leftovers(found.home, []), grace_seconds=0.1)


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + 15
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)
    return path.read_text()


def test_killed_service_is_restarted_and_counted(running):
    running.start(running.service("a"))
    first = running.wait("a", "healthy")
    os.kill(first["pid"], signal.SIGKILL)
    second = running.wait("a", "healthy", restarts=1)
    assert second["pid"] != first["pid"]
    found = platform.status(running.env)
    assert found["healthy"]
    assert found["services"]["a"]["restarts"] == 1


def test_a_record_that_cannot_be_written_ends_no_service_and_is_written_later(running):
    """As on a full disk: what is written down is late, everything else goes on."""
    first = running.start(running.service("a"), running.service("b")).wait("a", "healthy")
    kept = running.wait("b", "healthy")
    file = running.home / PLATFORM_FILE
    file.unlink()
    file.mkdir()  # no file can be renamed to it
    os.kill(first["pid"], signal.SIGKILL)
    time.sleep(3)
    assert running.process.poll() is None
    file.rmdir()
    assert running.wait("a", "healthy", restarts=1)["pid"] != first["pid"]
    assert running.wait("b", "healthy")["pid"] == kept["pid"]


def test_a_suspended_service_is_not_told_to_be_well(running):
    """The kernel takes connections for it, so who only knocks would not notice."""
    entry = running.start(running.service("a")).wait("a", "healthy")
    os.kill(entry["pid"], signal.SIGSTOP)
    until(lambda: is_suspended(entry["pid"]), seconds=10, what="the kernel has stopped it")  # not yet when kill returns
    assert platform.status(running.env)["services"]["a"]["state"] == "unhealthy"
    os.kill(entry["pid"], signal.SIGCONT)
    assert platform.status(running.env)["services"]["a"]["state"] == "healthy"


def test_step_runs_before_the_service_that_needs_it_and_leaves_its_stamp(running):
    stamp = running.home / "stamp"
    step = running.service("s", "import sys, time; time.sleep(0.3); open(sys.argv[1] + '.ran', 'w')", once=True, stamp=str(stamp))
    needing = running.service("a", "import os, sys; assert os.path.exists(sys.argv[3])\n" + SERVE, str(running.home / "s.ran"), needs=("s",))
    running.start(needing, step)
    running.wait("a", "healthy")
    assert running.wait("s", "done")["restarts"] == 0
    assert stamp.exists()
    assert "s" not in platform.status(running.env)["services"]


def test_service_that_never_gets_well_is_given_up_with_its_exit_code(running):
    running.start(running.service("a", "import sys; print('no luck', flush=True); sys.exit(7)"))
    entry = running.wait("a", "failed")
    assert entry["exit_code"] == 7
    assert (running.home / "logs" / "a").read_text().count("no luck") == 3


def test_failed_step_is_not_repeated(running):
    running.start(running.service("s", "import sys; print('once', flush=True); sys.exit(3)", once=True))
    assert running.wait("s", "failed")["exit_code"] == 3
    assert (running.home / "logs" / "s").read_text().count("once") == 1


def test_down_stops_users_before_what_they_use_and_leaves_no_process(running):
    child = running.home / "child"
    running.start(running.service("1", stop_after=("2",)), running.service("2", spawn(CHILD), str(child), needs=("1",)))
    running.wait("2", "healthy")
    stubborn = psutil.Process(int(wait_for_file(child)))
    own = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True), stubborn]
    platform.down(running.env, echo=lambda text: None)
    assert running.order.read_text() == "21"
    running.process.wait(10)
    assert not [process for process in own if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert record.read_record(running.home)["addresses"] == {}
    assert running.env.platform == {}


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans needs Linux")
def test_what_a_dead_service_left_running_is_ended_before_its_successor_starts(running):
    child = running.home / "child"
    running.start(running.service("a", spawn(CHILD), str(child)))
    entry = running.wait("a", "healthy")
    stubborn = psutil.Process(int(wait_for_file(child)))
    child.write_text("")
    os.kill(entry["pid"], signal.SIGKILL)
    running.wait("a", "healthy", restarts=1)
    assert not stubborn.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="dying with the parent needs Linux")
def test_killed_supervisor_takes_its_services_along_and_leftovers_go_at_the_next_down(running):
    child = running.home / "child"
    running.start(running.service("a", spawn(STUBBORN), str(child)))
    entry = running.wait("a", "healthy")
    stubborn = psutil.Process(int(wait_for_file(child)))
    running.process.kill()
    running.process.wait()
    assert processes.wait_until_gone(entry, 10), "the service outlived its supervisor"
    assert stubborn.is_running()
    found = platform.status(running.env)
    assert not found["running"]
    assert found["services"]["a"]["state"] == "stopped"
    assert found["addresses"] == {}
    platform.down(running.env, echo=lambda text: None)
    assert not stubborn.is_running() or stubborn.status() == psutil.STATUS_ZOMBIE
    assert running.env.platform == {}


def test_down_never_touches_a_process_that_got_a_recorded_number(env):
    env.home.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True, cwd="/") as stranger:
        stale = {"pid": stranger.pid, "started": "1", "boot_id": record.boot_id()}
        service = {**stale, "state": "healthy", "once": False, "restarts": 0, "started_at": 1.0, "health": {}, "log": "", "exit_code": None}
        record.write_record(env.home, {"supervisor": stale, "services": {"a": service}, "addresses": {"mlflow_uri": "http://127.0.0.1:1"}})
        platform.down(env, echo=lambda text: None)
        assert stranger.poll() is None, "a foreign process was ended"
        stranger.kill()
    assert record.read_record(env.home)["addresses"] == {}


def test_second_supervisor_of_a_home_refuses_to_start(running):
    running.start(running.service("a"))
    running.wait("a", "healthy")
    done = subprocess.run(
        [sys.executable, "-c", "from pathlib import Path; import sys; from jobs.services.platform.record import locked\n"
         "with locked(Path(sys.argv[1]), timeout_seconds=0.2): pass", str(running.home / supervisor.LOCK_FILE)],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Another process" in done.stderr


def test_status_and_down_without_a_platform_say_so(env):
    said = []
    assert platform.status(env)["services"] == {}
    assert "moeline up" in platform.render_status(platform.status(env))
    platform.down(env, echo=said.append)
    assert said == ["The platform was not running."]


def test_a_service_that_is_starting_is_on_record(running):
    """Whoever is killed now must find it again."""
    running.start(running.service("a", "import time; time.sleep(60)"))
    entry = running.wait("a", "starting")
    assert record.is_same_process(entry)
