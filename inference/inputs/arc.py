"""ARC tasks: prompts, augmentations, and the submission made of the answers.

A task shows pairs of grids and asks for the output of one or more test inputs
(https://arcprize.org). Each test input is asked N times; prediction j of test input i is
`sample_idx = i * N + j`. Prediction 0 sees the original task. The others see it rotated, mirrored
and recoloured by an augmentation that depends only on the seed, the task and these numbers, so that
it can be undone on the answer at any later time.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from inference.inputs.arc_grids import Grid, GridEncoder

INSTRUCTION = (
    "Each example turns an input grid into an output grid by one and the same rule."
    " Find the rule and give the output grid of the test input, and nothing else."
)
NO_ANSWER: Grid = ((0, 0), (0, 0))
"""Grid of the competition's files for an answer without a grid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArcTask:
    """An ARC task.

    Attributes:
        task_id: id of the task.
        train: pairs of input and output grid.
        test_inputs: grids to solve.
        test_outputs: solution of each test input; None if it is not known.
    """

    task_id: str
    train: tuple[tuple[Grid, Grid], ...]
    test_inputs: tuple[Grid, ...]
    test_outputs: tuple[Grid | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """An invertible change of all grids of a task.

    Attributes:
        quarter_turns: counter-clockwise rotations by 90 degrees.
        mirrored: whether left and right are exchanged, after the rotation.
        colours: new colour of each colour; black (0), mostly the background, stays.
    """

    quarter_turns: int = 0
    mirrored: bool = False
    colours: tuple[int, ...] = tuple(range(10))

    def apply(self, grid: Grid) -> Grid:
        """Return the changed grid."""
        cells = np.rot90(np.array(self.colours)[np.array(grid)], self.quarter_turns)
        return _as_grid(cells[:, ::-1] if self.mirrored else cells)

    def undo(self, grid: Grid) -> Grid:
        """Return the grid that `apply` changed into this one."""
        cells = np.array(grid)
        cells = np.rot90(cells[:, ::-1] if self.mirrored else cells, -self.quarter_turns)
        return _as_grid(np.argsort(self.colours)[cells])


def augmentation(seed: int, task_id: str, test_index: int, prediction: int) -> Augmentation:
    """Return the augmentation of a prediction; that of prediction 0 changes nothing."""
    if prediction == 0:
        return Augmentation()
    name = f"{seed}/{task_id}/{test_index}/{prediction}".encode()
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
    return Augmentation(
        quarter_turns=int(random.integers(4)),
        mirrored=bool(random.integers(2)),
        colours=(0, *(int(c) for c in 1 + random.permutation(9))),
    )


def arc_prompt(task: ArcTask, test_index: int, encoder: GridEncoder, change: Augmentation) -> str:
    """Return a prompt with the train pairs and one test input; the answer continues it."""
    lines = [INSTRUCTION]
    for number, (given, wanted) in enumerate(task.train, start=1):
        lines += [f"\nExample {number}\nInput:", encoder.encode(change.apply(given))]
        lines += ["Output:", encoder.encode(change.apply(wanted))]
    lines += ["\nTest\nInput:", encoder.encode(change.apply(task.test_inputs[test_index]))]
    return "\n".join([*lines, "Output:\n"])


def build_submission(
    tasks: Sequence[ArcTask],
    outputs: Iterable[Mapping[str, Any]],
    *,
    predictions_per_task: int,
    encoder: GridEncoder,
    seed: int,
) -> dict[str, list[dict[str, Grid]]]:
    """Return the competition's file: two attempts for each test input.

    Args:
        tasks: all tasks, including tasks without an answer.
        outputs: lines of `outputs.jsonl`, in any order.
        predictions_per_task: number of predictions for each test input.
        encoder: encoder that wrote the prompts.
        seed: seed of the augmentations.

    Returns:
        By task id a list of `{"attempt_1", "attempt_2"}`, one for each test input: the two most
        frequent grids of the predictions, without their augmentations. The earlier prediction wins
        a tie.
    """
    answers: dict[tuple[str, int], dict[int, Grid]] = {}
    for line in outputs:
        test_index, prediction = divmod(line["sample_idx"], predictions_per_task)
        grid = encoder.decode(line["text"] or "")
        if grid is not None:
            change = augmentation(seed, line["task_id"], test_index, prediction)
            answers.setdefault((line["task_id"], test_index), {})[prediction] = change.undo(grid)

    def attempts(task: ArcTask, test_index: int) -> dict[str, Grid]:
        by_prediction = sorted(answers.get((task.task_id, test_index), {}).items())
        ranked = [grid for grid, _ in Counter(grid for _, grid in by_prediction).most_common(2)]
        first, second = [*ranked, NO_ANSWER, NO_ANSWER][:2]
        return {"attempt_1": first, "attempt_2": second}

    return {
        task.task_id: [attempts(task, i) for i in range(len(task.test_inputs))] for task in tasks
    }


def score_submission(
    tasks: Sequence[ArcTask], submission: Mapping[str, list[dict[str, Grid]]]
) -> tuple[int, int]:
    """Return how many test inputs are solved by an attempt, and how many have a known solution."""
    solved = known = 0
    for task in tasks:
        for solution, attempts in zip(task.test_outputs, submission[task.task_id], strict=True):
            if solution is not None:
                known += 1
                solved += solution in attempts.values()
    return solved, known


def _as_grid(cells: np.ndarray) -> Grid:
    return tuple(tuple(int(c) for c in row) for row in cells)
