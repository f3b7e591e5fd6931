import queue
import threading
import time

import pytest

from extraction.errors import StorageUnavailableError
from extraction.reading.read_ahead import in_order, read_files
from extraction.storage.local import LocalStorage


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads):
    def slow_first(number):
        time.sleep(0.01 if number % 3 == 0 else 0)
        return number * number

    assert list(in_order(slow_first, range(20), threads)) == [(n, n * n) for n in range(20)]


@pytest.mark.parametrize("threads", [1, 3])
def test_only_a_few_are_held(threads):
    begun = []
    results = in_order(begun.append, range(100), threads)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 2 * threads
    results.close()
    assert len(begun) <= 2 * threads


def test_small_files_are_given_in_order_and_what_is_missing_too(tmp_path):
    storage = LocalStorage(tmp_path)
    for count in (0, 1, 3, 300):
        names = [f"{number:03d}" for number in range(count)]
        for name in names[::2]:
            storage.put_new(f"{count}/{name}", name.encode())
        found = list(read_files(storage, [f"{count}/{name}" for name in names]))
        assert [name for name, _ in found] == [f"{count}/{name}" for name in names]
        for number, (_, content) in enumerate(found):
            if number % 2:
                assert isinstance(content, FileNotFoundError)
            else:
                assert content == names[number].encode()


def test_a_few_small_files_are_read_at_a_time():
    """So that a bucket, which answers slowly, is asked for several at once."""
    together = threading.Barrier(4, timeout=30)

    class Slow:
        is_local = False

        def get(self, name):
            together.wait()
            return b""

    assert len(list(read_files(Slow(), list("abcdefgh")))) == 8


def test_an_outage_ends_it_at_the_first_file():
    """Each attempt takes long, so the other files are not tried."""
    asked = []

    class Gone:
        is_local = False

        def get(self, name):
            asked.append(name)
            raise StorageUnavailableError("no network")

    with pytest.raises(StorageUnavailableError):
        list(read_files(Gone(), [str(number) for number in range(1000)]))
    assert len(asked) <= 2 * 8 + 1  # parts that had begun


def test_many_run_at_a_time():
    together = threading.Barrier(4, timeout=30)
    list(in_order(lambda _: together.wait(), range(8), 4))


@pytest.mark.parametrize("threads", [1, 3])
def test_what_goes_wrong_is_raised_here(threads):
    def fail(number):
        if number == 5:
            raise KeyError(number)
        return number

    results = in_order(fail, range(50), threads)
    assert [next(results)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        next(results)


def test_what_is_left_unfinished_may_be_ended_by_one_of_its_own_threads():
    """As when a thread collects garbage: it does not wait for itself."""
    left, ended = queue.SimpleQueue(), queue.SimpleQueue()

    def end_it(number):
        if number == 2:
            try:
                left.get().close()
                ended.put(None)
            except BaseException as error:
                ended.put(error)
        return number

    results = in_order(end_it, range(50), 2)
    assert next(results)[0] == 0
    left.put(results)
    assert ended.get(timeout=30) is None
