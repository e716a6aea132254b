"""Ports of two platforms that start at the same moment."""

from __future__ import annotations

import threading

from jobs.services.platform import ports


def test_platforms_of_a_machine_choose_their_ports_one_after_the_other():
    order, told = [], []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with ports.turn(timeout_seconds=30, waiting=lambda: told.append("first")):
            inside.set()
            leave.wait(30)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    threading.Timer(0.5, leave.set).start()
    with ports.turn(timeout_seconds=30, waiting=lambda: told.append("second")):
        order.append("second")
    thread.join()
    assert order == ["first", "second"] and told[-1] == "second"


def test_a_turn_that_nobody_ends_is_not_waited_for_for_ever():
    with ports.turn(timeout_seconds=5, waiting=lambda: None), ports.turn(timeout_seconds=0.3, waiting=lambda: None):
        pass
