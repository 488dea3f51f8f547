"""BackgroundWriter: one job under way, one waiting, in whatever order things happen."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit.checkpointing.background import BackgroundWriter

LONGEST = 10.0


class Job:
    def __init__(self, name="job", log=None, *, held=False, fails=False):
        self.name, self.log, self.fails = name, [] if log is None else log, fails
        self.error = None
        self.began, self.gate = threading.Event(), threading.Event()
        self.thread = None
        if not held:
            self.gate.set()

    def run(self):
        self.thread = threading.current_thread()
        self.began.set()
        assert self.gate.wait(LONGEST)
        self.log.append(self.name)
        if self.fails:
            self.error = OSError(self.name)

    def __repr__(self):
        return self.name


@pytest.fixture
def writer():
    writer = BackgroundWriter()
    yield writer
    writer.wait()
    writer.close()


def test_a_job_is_run_in_another_thread_and_collected_once(writer):
    job = Job()
    writer.submit(job)
    writer.wait()
    assert not writer.is_busy
    assert writer.has_news
    assert writer.collect() == [job]
    assert not writer.has_news
    assert writer.collect() == []
    assert job.thread is not threading.main_thread()


def test_a_job_that_waits_runs_after_the_one_under_way(writer):
    log = []
    first, second = Job("first", log, held=True), Job("second", log)
    writer.submit(first)
    assert first.began.wait(LONGEST)
    writer.submit(second)
    assert writer.is_busy
    assert not second.began.is_set()
    assert writer.collect() == []
    first.gate.set()
    writer.wait()
    assert log == ["first", "second"]
    assert writer.collect() == [first, second]


def test_a_job_that_waits_can_be_taken_away(writer):
    first, second, third = Job("first", held=True), Job("second"), Job("third")
    assert writer.take_waiting() is None
    writer.submit(first)
    writer.submit(second)
    assert writer.take_waiting() is second
    assert writer.take_waiting() is None
    writer.submit(third)
    first.gate.set()
    writer.wait()
    assert writer.collect() == [first, third]
    assert not second.began.is_set()


def test_a_job_that_failed_holds_up_the_one_that_waits_until_it_is_collected(writer):
    first, second = Job("first", held=True, fails=True), Job("second")
    writer.submit(first)
    writer.submit(second)
    first.gate.set()
    writer.wait()
    assert not writer.is_busy
    assert not second.began.is_set()
    assert writer.collect() == [first]
    assert writer.take_waiting() is second
    writer.submit(second)
    writer.wait()
    assert writer.collect() == [second]


def test_a_job_that_comes_after_a_failed_one_waits_until_that_is_collected(writer):
    first, second = Job("first", fails=True), Job("second")
    writer.submit(first)
    writer.wait()
    writer.submit(second)
    assert not writer.is_busy
    assert not second.began.is_set()
    assert writer.collect() == [first]
    assert writer.take_waiting() is second


def test_waiting_for_one_leaves_the_next_under_way(writer):
    first, second = Job("first", held=True), Job("second", held=True)
    writer.wait_for_one()  # with none under way it returns
    writer.submit(first)
    writer.submit(second)
    opener = threading.Timer(0.01, first.gate.set)
    opener.start()
    writer.wait_for_one()
    opener.join()
    assert writer.collect() == [first]
    assert writer.is_busy
    assert second.began.wait(LONGEST)
    second.gate.set()


def test_waiting_for_one_that_fails_returns(writer):
    first, second = Job("first", held=True, fails=True), Job("second")
    writer.submit(first)
    writer.submit(second)
    opener = threading.Timer(0.01, first.gate.set)
    opener.start()
    writer.wait_for_one()
    opener.join()
    assert writer.collect() == [first]
    assert writer.take_waiting() is second


def test_no_thread_is_left_after_close_and_a_later_job_starts_another(writer):
    first, second = Job(), Job()
    writer.submit(first)
    writer.wait()
    writer.close()
    assert not first.thread.is_alive()
    writer.close()
    writer.submit(second)
    writer.wait()
    assert writer.collect() == [first, second]


def test_the_thread_ends_by_itself_when_there_is_nothing_to_do(monkeypatch, writer):
    monkeypatch.setattr(BackgroundWriter, "IDLE_SECONDS", 0.01)
    first, second = Job(), Job()
    writer.submit(first)
    assert first.began.wait(LONGEST)
    first.thread.join(LONGEST)
    assert not first.thread.is_alive()
    writer.submit(second)
    writer.wait()
    assert writer.collect() == [first, second]


def test_closing_lets_the_job_under_way_end(writer):
    job = Job(held=True)
    writer.submit(job)
    opener = threading.Timer(0.01, job.gate.set)
    opener.start()
    writer.close()
    opener.join()
    assert writer.collect() == [job]
    assert not job.thread.is_alive()


def test_a_thread_that_cannot_be_started_is_an_error_and_nobody_waits_for_it(monkeypatch):
    writer = BackgroundWriter()

    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            writer.submit(Job())
    assert not writer.is_busy
    writer.close()
    again = Job()
    writer.submit(again)
    writer.wait()
    assert writer.collect() == [again]
    writer.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["submit", "collect", "wait"]))))
def test_no_job_is_lost_or_run_twice_whatever_the_order(steps):
    """Every job that was submitted and not taken away is run once, in order."""
    writer, log, submitted, collected = BackgroundWriter(), [], [], []

    def resubmit():
        found = writer.collect()
        collected.extend(found)
        if any(job.error is not None for job in found):
            waiting = writer.take_waiting()
            if waiting is not None:
                writer.submit(waiting)

    try:
        for number, (fails, action) in enumerate(steps):
            if action == "submit":
                waiting = writer.take_waiting()
                if waiting is not None:
                    submitted.remove(waiting)
                submitted.append(Job(number, log, fails=fails))
                writer.submit(submitted[-1])
            elif action == "wait":
                writer.wait()
            else:
                resubmit()
        while writer.is_busy or writer.has_news:
            writer.wait()
            resubmit()
    finally:
        writer.close()
    assert collected == submitted
    assert log == [job.name for job in submitted]
