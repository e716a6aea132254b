"""When a training stops before its end: never above its allowance by more than a step, and when it is asked to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from jobs.environment import REPO
from jobs.services import run_control
from jobs.services.run_control import BUDGET, STOP, Allowance, Control


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_steps_take_at_most_one_is_above_the_allowance(tmp_path, seed):
    luck = random.Random(seed)
    usual, now, rate = luck.uniform(0.1, 5.0), 1000.0, luck.uniform(0.001, 3.0)
    allowance = Allowance(usd=luck.uniform(20, 200) * usual * rate, usd_per_second=rate, since=now, limit_usd=1.0)
    finishing = luck.uniform(0, 10)
    control = Control(tmp_path, allowance, finishing_steps=finishing, clock=lambda: now)
    steps = []
    while (why := control.why_stop()) is None:
        steps.append(usual * luck.uniform(0.8, 1.25))
        now += steps[-1]
        control.took(steps[-1])
    spent = (now - allowance.since) * rate
    assert why == BUDGET
    finished = spent + finishing * usual * rate
    assert finished <= allowance.usd + (1 + 0.25 * finishing) * max(steps) * rate
    assert finished >= allowance.usd - (3 + 0.6 * finishing) * max(steps) * rate, "and it does not stop long before"


def test_without_anything_left_no_step_is_taken_and_without_prices_all_are(tmp_path):
    assert Control(tmp_path, Allowance(0.0, 1.0, time.time(), 0.0)).why_stop() == BUDGET
    assert Control(tmp_path, Allowance(0.0, 0.0, time.time(), 0.0)).why_stop() is None
    assert Control(tmp_path, None).why_stop() is None


def test_the_time_a_checkpoint_takes_is_kept(tmp_path):
    control = Control(tmp_path, Allowance(10.0, 1.0, 0.0, 10.0), clock=lambda: 4.0)
    control.took(1.0)
    assert control.why_stop() is None
    control.saving_seconds = 5.5
    assert control.why_stop() == BUDGET


def test_a_request_in_the_folder_stops_and_can_be_withdrawn(tmp_path):
    run_control.request_stop(tmp_path, "a test")
    assert Control(tmp_path, None).why_stop() == STOP
    run_control.withdraw_request(tmp_path)
    assert Control(tmp_path, None).why_stop() is None


def test_a_signal_is_only_noted_and_the_handler_before_it_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with run_control.caught_sigterm() as signalled:
        assert not signalled()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signalled()
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_owns_no_signals_and_is_left_alone():
    found = []

    def use():
        with run_control.caught_sigterm() as signalled:
            found.append(signalled())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [False]


WAITING = textwrap.dedent("""
    import signal, sys, time
    from pathlib import Path
    from jobs.services import run_control

    class Stopped(BaseException):
        pass

    def stop(number, frame):
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    folder, ends_on_request = Path(sys.argv[1]), sys.argv[2] == "yes"
    began = time.monotonic()
    try:
        with run_control.stopped_through(folder, 1.5):
            print("waiting", flush=True)
            while not (ends_on_request and (folder / run_control.STOP_REQUEST).exists()):
                time.sleep(0.02)
        time.sleep(5)
    except Stopped:
        print("stopped", flush=True)
""")


@pytest.mark.parametrize(("obeys", "signals", "at_least", "at_most"), [("yes", 1, 0.0, 1.2), ("no", 1, 1.4, 4.0), ("no", 2, 0.0, 1.2)])
def test_sigterm_asks_the_training_first_and_takes_effect_when_it_ended_or_is_late(tmp_path, obeys, signals, at_least, at_most):
    process = subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path), obeys], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    began = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    out, _ = process.communicate(timeout=20)
    assert out == "stopped\n"
    assert at_least <= time.monotonic() - began <= at_most + 3.0 * (os.getloadavg()[0] > 2)
    assert (tmp_path / run_control.STOP_REQUEST).exists()


class Notice:
    def __init__(self, *nodes):
        self.preempted_node_ids = list(nodes)


def test_every_preemption_is_told_once_and_ray_is_not_asked_at_every_step():
    seconds, answers, asked = [0], [None, Notice("a"), Notice("a"), *[Notice("a", "b")] * 2], []
    notice = run_control.PreemptionNotice(clock=lambda: seconds[0])
    assert not notice.is_new()  # outside Ray Train nobody is asked
    notice._ask = lambda: asked.append(seconds[0]) or answers[len(asked) - 1]
    told = []
    for seconds[0] in range(100, 109):
        if notice.is_new():
            told.append(seconds[0])
    assert asked == [100, 102, 104, 106, 108]
    assert told == [102, 106]
