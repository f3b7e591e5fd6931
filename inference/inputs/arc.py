"""ARC tasks: prompts, augmentations, and answers put together for submission.

A task shows pairs of grids and asks for the output of one or more test inputs
(https://arcprize.org). Test input i asked for the j-th of N times is
`sample_idx = i * N + j`. Prediction 0 sees the task as it is; every other one sees it rotated,
mirrored and recoloured by an augmentation that depends on nothing but the seed, the task and
these numbers, so that it can be undone on the answer at any later time.
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
"""What the competition's files hold where a model gave no grid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArcTask:
    """A task.

    Attributes:
        task_id: its name.
        train: pairs of input and output grid.
        test_inputs: grids to solve.
        test_outputs: their solutions, None where not known.
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
        mirrored: left and right exchanged, after the rotation.
        colours: colour c becomes `colours[c]`; black (0), mostly the background, stays.
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
    """Return the augmentation of a prediction; none for prediction 0."""
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
    """Return the train pairs and one test input as text, which the answer must continue."""
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
        tasks: all of them; one without any answer is in the file too.
        outputs: lines of `outputs.jsonl`, in any order.
        predictions_per_task: N of the numbering.
        encoder: that wrote the prompts.
        seed: of the augmentations.

    Returns:
        Per task a list with, per test input, `attempt_1` and `attempt_2`: the two most frequent
        grids among the predictions, the augmentation undone (the earlier prediction wins a tie).
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
    """Return the number of test inputs with a right attempt, and of those with a known solution."""
    solved = known = 0
    for task in tasks:
        for solution, attempts in zip(task.test_outputs, submission[task.task_id], strict=True):
            if solution is not None:
                known += 1
                solved += solution in attempts.values()
    return solved, known


def _as_grid(cells: np.ndarray) -> Grid:
    return tuple(tuple(int(c) for c in row) for row in cells)
