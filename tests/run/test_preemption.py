"""Signals: what may be given up is given up at once, and nothing else is."""

import os
import signal
import threading
import time

import pytest

from vgrout_jax.run import preemption


def test_a_signal_gives_up_only_what_may_be_given_up():
    done = []
    with preemption.Watch() as watch, pytest.raises(preemption.Preempted) as caught:
        with watch.abandonable():
            done.append("before")
        signal.raise_signal(signal.SIGTERM)
        done.append("update")  # not to be given up: it goes on
        with watch.abandonable():
            done.append("never")
    assert done == ["before", "update"]
    assert (caught.value.status, caught.value.name) == (143, "SIGTERM")


def test_a_signal_ends_a_wait_at_once():
    started = time.monotonic()
    with preemption.Watch() as watch, pytest.raises(preemption.Preempted), watch.abandonable():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(60)
    assert time.monotonic() - started < 30


def test_more_signals_change_nothing_and_handlers_are_put_back():
    previous = signal.getsignal(signal.SIGTERM)
    with preemption.Watch() as watch:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(preemption.Preempted):
            watch.check()
    assert signal.getsignal(signal.SIGTERM) is previous


def test_no_except_clause_for_errors_stops_it():
    assert not issubclass(preemption.Preempted, Exception)
