import gc
import threading

import numpy as np
import pytest

from extraction.reading.buffer_pool import STEP, RecycledMemory


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("size", [1, 1000, STEP, 3 * STEP + 5])
def test_memory_is_used_again_when_nobody_holds_it(size):
    memory = RecycledMemory()
    first = memory.take(size)
    assert (first.shape, first.dtype) == ((size,), np.uint8)
    place = address(first)
    view = first[size // 2 :].view(np.uint8).reshape(1, -1)
    del first
    gc.collect()
    other = memory.take(size)
    assert address(other) != place  # the view holds it
    del view
    gc.collect()
    assert address(memory.take(size)) == place


def test_views_of_other_types_hold_it_too():
    memory = RecycledMemory()
    kind = np.dtype([("head", "u1", 3), ("row", "<f4", 7)])
    table = memory.take(5 * kind.itemsize).view(kind)
    table["row"] = 1.0
    content = table.view(np.uint8).data
    del table
    gc.collect()
    memory.take(5 * kind.itemsize)[:] = 7
    kept = np.frombuffer(content, kind)["row"]
    assert kept.shape == (5, 7)
    assert (kept == 1.0).all()


def test_other_sizes_have_memory_of_their_own():
    memory = RecycledMemory()
    place = address(memory.take(STEP))
    gc.collect()
    assert address(memory.take(2 * STEP)) != place
    assert address(memory.take(STEP - 1)) == place
    assert memory.take(0).shape == (0,)


def test_no_more_is_kept_than_was_asked_for():
    memory = RecycledMemory(most=2)
    taken = [memory.take(STEP) for _ in range(5)]
    places = {address(array) for array in taken}
    taken.clear()
    gc.collect()
    held = [memory.take(STEP)]
    held += [memory.take(STEP)]
    assert {address(array) for array in held} <= places
    assert len(memory._free) == 0


def test_threads_never_share_it():
    memory, wrong = RecycledMemory(most=3), []

    def work(number: int) -> None:
        for turn in range(300):
            array = memory.take(1000 + STEP * (turn % 3))
            array[:] = number
            if (array != number).any():
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
