"""What an encoder writes it also reads, out of whatever a model says around it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.inputs.arc_grids import GRID_ENCODERS, is_grid

fixed = settings(derandomize=True, deadline=None)
every_encoder = pytest.mark.parametrize("name", GRID_ENCODERS)


def grids(largest=8):
    def of_shape(shape):
        height, width = shape
        row = st.tuples(*[st.integers(0, 9)] * width)
        return st.tuples(*[row] * height)

    return st.tuples(st.integers(1, largest), st.integers(1, largest)).flatmap(of_shape)


# Text in which no encoder sees a grid: without digits and brackets.
prose = st.text(st.characters(codec="utf-8", exclude_categories=["Nd"], exclude_characters="[]"))

LARGEST = tuple(tuple((i * j) % 10 for j in range(30)) for i in range(30))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digits", "012\n345"),
        ("spaced", "0 1 2\n3 4 5"),
        ("shaped", "2x3\n012\n345"),
        ("numbered", "1 012\n2 345"),
        ("json", "[[0,1,2],[3,4,5]]"),
    ],
)
def test_how_a_grid_is_written(name, text):
    assert GRID_ENCODERS[name].encode(((0, 1, 2), (3, 4, 5))) == text


@every_encoder
@fixed
@given(grid=grids())
@example(grid=LARGEST)
def test_decode_inverts_encode(name, grid):
    encoder = GRID_ENCODERS[name]
    assert encoder.decode(encoder.encode(grid)) == grid


@every_encoder
@fixed
@given(grid=grids(4), before=prose, after=prose, end=st.sampled_from(["\n", "\r\n", "\n  "]))
@example(grid=((1, 2), (3, 4)), before="```", after="```", end="\n")
@example(grid=((1,),), before="The rule: mirror it.\n", after="\nDone.<|im_end|>", end="\n")
def test_grid_is_found_in_an_answer(name, grid, before, after, end):
    encoder = GRID_ENCODERS[name]
    answer = end.join([before, *encoder.encode(grid).split("\n"), after])
    assert encoder.decode(answer) == grid


@every_encoder
@fixed
@given(first=grids(4), second=grids(4))
def test_first_of_two_grids_counts(name, first, second):
    encoder = GRID_ENCODERS[name]
    answer = f"{encoder.encode(first)}\n\nor\n\n{encoder.encode(second)}"
    assert encoder.decode(answer) == first


@every_encoder
@pytest.mark.parametrize("answer", ["", "\n\n", "I do not know.", "12:30, or 7 of 9", "-1", "[]"])
def test_answer_without_a_grid(name, answer):
    assert GRID_ENCODERS[name].decode(answer) is None


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("shaped", "2x2\n012\n345"),
        ("shaped", "3x3\n012\n345"),
        ("json", "[[1,2],[3]]"),
        ("json", "[[10]]"),
        ("json", "[[]]"),
        ("json", "[[1,2]"),
        ("numbered", "012\n345"),
        ("spaced", "012"),
    ],
)
def test_what_is_not_quite_a_grid(name, answer):
    encoder = GRID_ENCODERS[name]
    assert encoder.decode(answer) is None
    if name in ("shaped", "json"):  # which see where the wrong one ends
        assert encoder.decode(f"{answer}\nno:\n{encoder.encode(((7,), (8,)))}") == ((7,), (8,))


@pytest.mark.parametrize("answer", ["[[[1,2],[3,4]]]", "[[[1,2],[3,4]],[[5]]]", "[ [[1,2],[3,4]]"])
def test_json_grid_in_further_brackets(answer):
    assert GRID_ENCODERS["json"].decode(answer) == ((1, 2), (3, 4))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("json", "[" * 100_000 + "]]"),
        ("json", f"[[{'1' * 5000}]]"),
        ("shaped", f"{'1' * 5000}x2\n12"),
    ],
)
def test_endless_repetition_is_no_grid(name, answer):
    # Small models repeat themselves; the answers of a whole run must not be lost to that.
    assert GRID_ENCODERS[name].decode(answer) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[0]], True),
        (((0, 9), (1, 2)), True),
        ([(0, 9)], True),
        ([], False),
        ([[]], False),
        ([[0], []], False),
        ([[1, 2], [3]], False),
        ([[10]], False),
        ([[-1]], False),
        ([[True]], False),
        ([[1.0]], False),
        ([["1"]], False),
        (["12"], False),
        (None, False),
        ({0: [1]}, False),
    ],
)
def test_is_grid(value, expected):
    assert is_grid(value) is expected
