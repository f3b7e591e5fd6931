import random
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from extraction.run.exact_sum import HELD, ExactSum


def added(numbers) -> ExactSum:
    found = ExactSum()
    for number in numbers:
        found.add(number)
    return found


@given(st.lists(st.floats(-1e200, 1e200), max_size=30), st.integers(0, 3))
def test_the_sum_is_rounded_once(numbers, seed):
    many = numbers * (1 + seed * HELD // 10)
    assert added(many).total() == float(sum(map(Fraction, many), Fraction()))


def test_the_order_of_many_numbers_does_not_matter():
    chance = random.Random(1)
    numbers = [chance.gauss(0, 1) * 10 ** chance.uniform(-20, 20) for _ in range(20 * HELD)]
    exact = float(sum(map(Fraction, numbers), Fraction()))
    for _ in range(3):
        chance.shuffle(numbers)
        assert added(numbers).total() == exact


def test_numbers_that_cancel_leave_nothing_behind():
    numbers = [value for k in range(3 * HELD) for value in (1.1**k % 1e9, 5e-324)]
    assert added([*numbers, *(-number for number in numbers)]).total() == 0
