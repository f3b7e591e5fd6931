"""`outputs.jsonl`: one line for each sample, including samples that could not run.

A line has task_id, sample_idx, prompt, prompt_token_ids, generated_token_ids, text, finish_reason
("stop", "length", or "skipped" with a "reason"), and the task's own fields.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from extraction.errors import ExistingRunError
from extraction.run_layout import OUTPUTS_FILE, SUBMISSION_FILE
from extraction.setting_names import setting
from extraction.storage import file_operations
from extraction.storage.local import LocalStorage
from inference.inputs.arc import ArcTask, build_submission, score_submission
from inference.inputs.arc_grids import GRID_ENCODERS

if TYPE_CHECKING:
    from inference.inputs.samples import Sample
    from inference.inputs.tasks import Task
    from inference.settings.commands import ExtractionSettings

FOUND_FIELD = "found_in_messages"
"""Field of a chat's output line: the messages in which `--positions` found its texts."""

NO_POSITION = "the selectors of positions chose none of its tokens"
OUTPUT_FIELDS = frozenset(
    [
        "task_id",
        "sample_idx",
        "prompt",
        "prompt_token_ids",
        "generated_token_ids",
        "text",
        "finish_reason",
        "reason",
        FOUND_FIELD,
    ]
)


def output_line(
    sample: "Sample",
    generated: Sequence[int],
    text: str | None,
    finish_reason: str,
    reason: str | None = None,
) -> dict[str, Any]:
    """Return a sample's output line.

    Args:
        sample: the sample.
        generated: generated token ids, including a stop token.
        text: text of the generated tokens; None without a tokenizer.
        finish_reason: stop, length or skipped.
        reason: why the sample has no activations; None if it has some.
    """
    return {
        "task_id": sample.task_id,
        "sample_idx": sample.sample_idx,
        "prompt": sample.prompt,
        "prompt_token_ids": list(sample.token_ids),
        "generated_token_ids": list(generated),
        "text": text,
        "finish_reason": finish_reason,
        **({} if reason is None else {"reason": reason}),
        **sample.extra,
    }


def skipped_line(sample: "Sample", reason: str) -> dict[str, Any]:
    """Return the output line of a sample that could not run."""
    return output_line(sample, [], None, "skipped", reason)


class OutputsFile:
    """A writer of `outputs.jsonl`; the file appears when the `with` block ends without an error.

    Args:
        folder: folder of the file; it is made if it does not exist.
        may_exist: whether to replace an `outputs.jsonl` in the folder.

    Raises:
        ExistingRunError: the folder already holds an `outputs.jsonl`.
    """

    def __init__(self, folder: str | Path, *, may_exist: bool = False):
        self._storage = LocalStorage(folder)
        self.path = self._storage.folder / OUTPUTS_FILE
        if self.path.exists() and not may_exist:
            raise ExistingRunError(
                f"{self.path} exists already; continue its run with {setting('resume', True)}, or"
                f" begin a new run with another {setting('output_dir')}; nothing was changed"
            )

    def __enter__(self) -> "OutputsFile":
        self._storage.make_folder()
        self._temporary = file_operations.write_temporary(self._storage.folder, b"")
        self._stream = self._temporary.open("a", encoding="utf-8")
        return self

    def write(self, line: dict[str, Any]) -> None:
        """Add a sample's line."""
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            file_operations.sync_and_close(self._stream)
            if exception_type is None:
                file_operations.publish_temporary(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def write_submission(
    tasks: Sequence["Task"], outputs_file: Path, settings: "ExtractionSettings"
) -> str | None:
    """Write `submission.json` beside `outputs.jsonl`, and return the score as text.

    Only ARC tasks have a submission. With at most one new token there are no answers, so nothing is
    written either; then the result is None.
    """
    arc_tasks = [task for task in tasks if isinstance(task, ArcTask)]
    if not arc_tasks or settings.max_new_tokens <= 1:
        return None
    with outputs_file.open(encoding="utf-8") as lines:
        submission = build_submission(
            arc_tasks,
            map(json.loads, lines),
            predictions_per_task=settings.predictions_per_task,
            encoder=GRID_ENCODERS[settings.grid_encoder],
            seed=settings.random_seed,
        )
    path = outputs_file.with_name(SUBMISSION_FILE)
    file_operations.publish_over(path, json.dumps(submission).encode())
    solved, known = score_submission(arc_tasks, submission)
    return f"{solved} of {known} known test outputs solved, in {path}"
