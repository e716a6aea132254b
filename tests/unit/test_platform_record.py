"""platform.json, private files, locks, ports, and telling our processes from others that got their numbers."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time

import psutil
import pytest

from jobs.contract import MoelineError
from jobs.services.platform import ports, record
from jobs.services.process_identity import started


def test_record_is_private_and_survives_being_cut_short(tmp_path):
    record.write_record(tmp_path, {"services": {}})
    assert record.read_record(tmp_path) == {"services": {}}
    assert stat.S_IMODE((tmp_path / "platform.json").stat().st_mode) == 0o600
    (tmp_path / "platform.json").write_text('{"services": {"a"')
    assert record.read_record(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["platform.json"], "a temporary file was left behind"


def test_secret_is_made_once_and_readable_by_its_owner_only(tmp_path):
    made = iter(["first", "second"])
    assert record.secret(tmp_path / "keys" / "k", lambda: next(made)) == "first"
    assert record.secret(tmp_path / "keys" / "k", lambda: next(made)) == "first"
    assert stat.S_IMODE((tmp_path / "keys" / "k").stat().st_mode) == 0o600


def test_own_process_is_recognised():
    assert record.is_same_process(record.identity(os.getpid()))


@pytest.mark.parametrize("change", [{"started": "1"}, {"started": f"another boot {started(os.getpid()).split()[-1]}"}, {"pid": None}, {"started": None}])
def test_process_with_the_same_number_is_not_the_same_process(change):
    assert not record.is_same_process({**record.identity(os.getpid()), **change})


def test_it_is_the_same_process_after_the_clock_was_set(monkeypatch):
    """psutil reckons start times from the boot time, and that from the clock of now."""
    entry, before = record.identity(os.getpid()), psutil.Process().create_time()
    day = psutil.boot_time() + 86_400
    monkeypatch.setattr(psutil._pslinux if hasattr(psutil, "_pslinux") else psutil, "boot_time", lambda: day)
    monkeypatch.setattr(psutil._pslinux, "BOOT_TIME", day, raising=False)
    assert psutil.Process().create_time() != before, "psutil is fooled, or this test tests nothing"
    assert record.is_same_process(entry)


def test_ended_process_is_not_running_even_before_it_is_collected():
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        entry = record.identity(process.pid)
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert not record.is_same_process(entry)
    assert not record.is_same_process(entry)


def test_no_record_is_no_process():
    assert not record.is_same_process(None)
    assert not record.is_same_process({})


def test_lock_is_refused_while_held_and_free_after_its_holder_was_killed(tmp_path):
    held = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", held, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        told = []
        with pytest.raises(MoelineError, match="Another process"), record.locked(tmp_path / "lock", timeout_seconds=0.3, waiting=lambda: told.append(1)):
            pass
        assert told == [1]
        holder.kill()
        holder.wait()
        with record.locked(tmp_path / "lock", timeout_seconds=5):
            pass


def test_usual_port_is_chosen_when_free_and_another_when_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        chosen = ports.choose_ports({"a": busy, "b": 0, "c": 0})
    assert chosen["a"] != busy
    assert len(set(chosen.values())) == 3
    assert ports.choose_ports({"a": busy}) == {"a": busy}


def test_port_taken_on_all_addresses_counts_as_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        assert ports.choose_ports({"a": busy})["a"] != busy


def test_two_services_wishing_the_same_port_get_two():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chosen = ports.choose_ports({"a": port, "b": port})
    assert chosen["a"] == port
    assert chosen["b"] != port


def test_a_port_that_somebody_takes_meanwhile_is_given_up(env, monkeypatch):
    """Two platforms that start at once may choose the same ports: the loser of the race starts again with others."""
    from jobs.services import platform

    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        stolen, tries, said = thief.getsockname()[1], [], []
        record = {"services": {"ray-head": {"port": stolen}}, "addresses": {"airflow_url": "x"}}

        def wait(*_):
            tries.append(1)
            if len(tries) < 2:
                raise MoelineError("ray-head could not be started: exit code 1.")
            return record

        monkeypatch.setattr(platform, "_start_supervisor", lambda env: record)
        monkeypatch.setattr(platform, "_wait_until_healthy", wait)
        monkeypatch.setattr(platform, "down", lambda env, echo: record)
        assert platform.up(env, echo=said.append) is record
        assert len(tries) == 2 and f"took port {stolen} of ray-head" in said[0]
        tries.clear()
    with pytest.raises(MoelineError, match="could not be started"):  # nobody has the port: another reason, said at once
        platform.up(env, echo=said.append)
    assert len(tries) == 1
