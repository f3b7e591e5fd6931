"""Augmentations are what they say and can be undone; the submission counts and votes right."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.inputs.arc import (
    ArcTask,
    Augmentation,
    arc_prompt,
    augmentation,
    build_submission,
    score_submission,
)
from inference.inputs.arc_grids import GRID_ENCODERS

fixed = settings(derandomize=True, deadline=None)
DIGITS = GRID_ENCODERS["digits"]
SEED = 3
NOTHING = ((0, 0), (0, 0))  # what the competition's sample submission holds

shapes = st.tuples(st.integers(1, 5), st.integers(1, 5))
grids = shapes.flatmap(lambda s: st.tuples(*[st.tuples(*[st.integers(0, 9)] * s[1])] * s[0]))
turns, mirrorings = st.integers(0, 3), st.booleans()
recolourings = st.permutations(range(1, 10)).map(lambda colours: (0, *colours))


@fixed
@given(turns=turns, mirrored=mirrorings, colours=recolourings, grid=grids)
def test_undo_inverts_apply(turns, mirrored, colours, grid):
    change = Augmentation(quarter_turns=turns, mirrored=mirrored, colours=colours)
    assert change.undo(change.apply(grid)) == grid
    assert change.apply(change.undo(grid)) == grid


@fixed
@given(turns=turns, mirrored=mirrorings, colours=recolourings, grid=grids)
def test_apply_turns_mirrors_and_recolours(turns, mirrored, colours, grid):
    change = Augmentation(quarter_turns=turns, mirrored=mirrored, colours=colours)
    expected = grid
    for _ in range(turns):  # counter-clockwise: the last column comes on top
        expected = tuple(zip(*expected, strict=True))[::-1]
    if mirrored:
        expected = tuple(row[::-1] for row in expected)
    expected = tuple(tuple(colours[cell] for cell in row) for row in expected)
    assert change.apply(grid) == expected


def test_apply_by_hand():
    grid = ((1, 2, 3), (4, 5, 6))
    assert Augmentation(quarter_turns=1).apply(grid) == ((3, 6), (2, 5), (1, 4))
    assert Augmentation(mirrored=True).apply(grid) == ((3, 2, 1), (6, 5, 4))
    swapped = Augmentation(colours=(0, 2, 1, 3, 4, 5, 6, 7, 8, 9))
    assert swapped.apply(grid) == ((2, 1, 3), (4, 5, 6))


@fixed
@given(seed=st.integers(0, 2**64), task_id=st.text(), test_index=st.integers(0, 9), grid=grids)
def test_prediction_0_sees_the_task_as_it_is(seed, task_id, test_index, grid):
    assert augmentation(seed, task_id, test_index, 0).apply(grid) == grid


@fixed
@given(st.integers(0, 2**64), st.text(), st.integers(0, 9), st.integers(1, 99))
def test_colours_are_exchanged_but_black(seed, task_id, test_index, prediction):
    colours = augmentation(seed, task_id, test_index, prediction).colours
    assert sorted(colours) == list(range(10))
    assert colours[0] == 0


def test_augmentation_depends_on_its_arguments_alone():
    program = (
        "from inference.inputs.arc import augmentation; print(augmentation(1, 'zwölf/3', 2, 5))"
    )
    root = Path(__file__).parents[3]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]
    assert outputs == [str(augmentation(1, "zwölf/3", 2, 5))] * 2


@pytest.mark.parametrize("varied", range(4), ids=["seed", "task_id", "test_index", "prediction"])
def test_augmentation_depends_on_each_argument(varied):
    arguments = [[1, "t", 1, 1] for _ in range(50)]
    for number, each in enumerate(arguments, start=1):
        each[varied] = str(number) if varied == 1 else number
    assert len({augmentation(*each) for each in arguments}) >= 49


def test_every_turn_and_mirroring_occurs():
    changes = [augmentation(SEED, "t", 0, prediction) for prediction in range(1, 200)]
    seen = {(change.quarter_turns, change.mirrored) for change in changes}
    assert seen == {(turns, mirrored) for turns in range(4) for mirrored in (False, True)}


@pytest.mark.parametrize("name", GRID_ENCODERS)
@pytest.mark.parametrize("test_index", [0, 1])
def test_prompt_shows_all_but_the_solution(arc_task, name, test_index):
    encoder, change = GRID_ENCODERS[name], Augmentation(quarter_turns=1, mirrored=True)
    prompt = arc_prompt(arc_task, test_index, encoder, change)
    shown = [grid for pair in arc_task.train for grid in pair] + [arc_task.test_inputs[test_index]]
    rest = prompt
    for grid in shown:
        _, found, rest = rest.partition("\n" + encoder.encode(change.apply(grid)) + "\n")
        assert found
    assert rest == "Output:\n"
    solution = encoder.encode(change.apply(arc_task.test_outputs[0]))
    assert solution not in prompt


def answer(task, test_index, prediction, grid, *, predictions):
    """The output line of a model that says `grid` in the prediction's own augmented view."""
    change = augmentation(SEED, task.task_id, test_index, prediction)
    return {
        "task_id": task.task_id,
        "sample_idx": test_index * predictions + prediction,
        "text": f"I think:\n{DIGITS.encode(change.apply(grid))}\n",
    }


def submission_of(tasks, outputs, predictions):
    return build_submission(
        tasks, outputs, predictions_per_task=predictions, encoder=DIGITS, seed=SEED
    )


A, B, C = ((1, 2, 3), (4, 5, 6)), ((2, 1),), ((7,), (8,), (0,))


@pytest.mark.parametrize(
    ("said", "attempts"),
    [
        ([A, B, C, C, B], (B, C)),  # two of B and C each, B came first
        ([C, B, B, A, None], (B, C)),  # C and A once each, C came first
        ([A, A, A, B, B], (A, B)),
        ([None, C, None, None, A], (C, A)),
        ([C] * 5, (C, NOTHING)),
        ([None] * 5, (NOTHING, NOTHING)),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_two_most_frequent_answers_win(arc_task, said, attempts, order):
    others = [B, A, None, None, None]  # of the other test input: no vote here
    outputs = [
        answer(arc_task, test_index, prediction, grid, predictions=5)
        for test_index, grids in enumerate([others, said])
        for prediction, grid in enumerate(grids)
        if grid is not None
    ]
    submission = submission_of([arc_task], outputs[::order], predictions=5)
    expected = [(B, A), attempts]
    assert submission == {"t": [dict(attempt_1=one, attempt_2=two) for one, two in expected]}


def test_votes_meet_across_augmentations(arc_task):
    texts = {answer(arc_task, 0, prediction, A, predictions=4)["text"] for prediction in range(4)}
    assert len(texts) == 4  # so that undoing is what makes them one


def test_task_without_answers_is_in_the_submission(arc_task):
    silent = dataclasses.replace(arc_task, task_id="silent")
    skipped = {"task_id": "silent", "sample_idx": 0, "text": None}
    chatty = {"task_id": "silent", "sample_idx": 1, "text": "no idea"}
    outputs = [skipped, chatty, answer(arc_task, 1, 0, C, predictions=1)]
    submission = submission_of([silent, arc_task], outputs, predictions=1)
    empty = {"attempt_1": NOTHING, "attempt_2": NOTHING}
    assert submission == {
        "silent": [empty, empty],
        "t": [empty, {"attempt_1": C, "attempt_2": NOTHING}],
    }


def test_score_counts_each_known_solution_once():
    def task(task_id, *solutions):
        return ArcTask(
            task_id=task_id, train=(), test_inputs=(A,) * len(solutions), test_outputs=solutions
        )

    def attempts(one, two):
        return {"attempt_1": one, "attempt_2": two}

    tasks = [task("x", A, B, None), task("y", C), task("z", C)]
    submission = {
        "x": [attempts(A, A), attempts(C, B), attempts(A, B)],
        "y": [attempts(A, B)],
        "z": [attempts(C[::-1], C)],
    }
    assert score_submission(tasks, submission) == (3, 4)
