"""Threads that read for a stream: their start and their end."""

import threading

import pytest

from extraction.reading.reading_threads import ReadingThreads


def test_an_interrupted_start_leaves_threads_that_can_be_joined(monkeypatch):
    start, started = threading.Thread.start, []

    def second_is_interrupted(thread):
        if started:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", second_is_interrupted)
    threads = ReadingThreads(3, "reading")
    with pytest.raises(KeyboardInterrupt):
        threads.submit(bytes)
    threads.end()
    threads.join(10.0)
    assert not started[0].is_alive()
