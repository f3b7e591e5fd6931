"""Which group, category and half each row is of, by labels of samples.

Labels are fields of lines such as those of `outputs.jsonl`: `task_id`, `sample_idx` and any others.
They come from the run's own output lines, or from a file whose lines may also have a `position`, to
label single rows, or no `sample_idx`, to label all samples of a task. Labels are held in memory,
about 150 bytes for each line.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from extraction import documents
from extraction.maintenance.committed_files import read_outputs
from extraction.run.records import CommitLog
from extraction.run.rows import RowBlock
from extraction.setting_names import setting
from extraction.storage import Storage, open_storage
from extraction.storage.bounded import get_at_most
from inference.errors import InputError
from sae.files.single_file import single_file
from sae.scores.settings import GroupSettings

NO_CATEGORY = "all"
"""Name of the only category without a field of categories."""

LARGEST_FILE = 1 << 30
MOST_CATEGORIES = 100
SHOWN = 8
"""Most values that a message names."""

LabelKey = tuple[str, int | None, int | None]
"""Task, sample and position; None for all."""


def run_lines(storage: Storage) -> Iterator[dict[str, Any]]:
    """Yield a run's output lines.

    Raises:
        CorruptBatchError: a file of lines is damaged.
    """
    for record in CommitLog(storage).records():
        if record.outputs is not None:
            yield from read_outputs(storage, record.outputs)


def file_lines(address: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of labels, JSON Lines on disk or in a bucket.

    Raises:
        InputError: there is no such file, or a line is no object with a `task_id`.
    """
    try:
        storage, name = single_file(address, writable=False)
        data = get_at_most(storage, name, LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{setting('labels_file', address)}: there is no such file") from None
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            line = documents.read_json(text)
        except ValueError as error:
            raise InputError(f"{address}, line {number} is not JSON: {error}") from None
        if not _names_rows(line):
            raise InputError(
                f"{address}, line {number} names no rows: it needs a text task_id, and may have a"
                " number sample_idx and with it a number position"
            )
        yield line


def _names_rows(line: Any) -> bool:
    """Return whether a line is an object with keys of rows."""
    if type(line) is not dict or type(line.get("task_id")) is not str:
        return False
    numbers = [line[name] for name in ("sample_idx", "position") if name in line]
    return all(map(documents.is_count, numbers)) and ("position" not in line or len(numbers) == 2)


def label_text(value: Any) -> str | None:
    """Return a label as the command line writes it; None for null and what is no single value."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None


class Labels:
    """The group and category of rows, by their keys.

    Attributes:
        categories: names of the categories, sorted.
        unlabelled: lines that lack a label.
    """

    def __init__(self):
        self.categories: list[str] = []
        self.unlabelled = 0
        self._found: dict[LabelKey, tuple[int, str]] = {}
        self._by_position = self._by_task = False

    @classmethod
    def read(
        cls,
        lines: Iterable[dict[str, Any]],
        where: str,
        *,
        label_field: str | None,
        first: Sequence[str] = (),
        second: Sequence[str] | None = None,
        category_field: str | None = None,
        group: int = 0,
    ) -> "Labels":
        """Return the labels that lines give.

        Args:
            lines: output lines, or lines of a file of labels.
            where: name of the lines, for messages.
            label_field: field with the group's label; None: all are of `group`.
            first: labels of group 0.
            second: labels of group 1; None: all others.
            category_field: field with the category; None: all are of `NO_CATEGORY`.
            group: group of all lines, without a field of labels.

        Raises:
            InputError: no line has a field, or a group's labels, or one key has two labels.
        """
        labels = cls()
        values: Counter[str] = Counter()
        fields: Sequence[str] = ()
        with_category, total = 0, 0
        for line in lines:
            total += 1
            fields = fields or list(line)
            category = NO_CATEGORY
            if category_field is not None:
                category = label_text(line.get(category_field))
                with_category += category is not None
            if label_field is not None:
                label = label_text(line.get(label_field))
                if label is not None:
                    values[label] += 1
                group = _group_of(label, first, second)
                if label is None:
                    category = None
            if category is None:
                labels.unlabelled += 1
            elif group >= 0:
                labels._add(line, group, category, where)
        if not total:
            raise InputError(f"{where} has no lines with labels; give {setting('labels_file')}")
        for field, found, name in (
            (label_field, sum(values.values()), "label_field"),
            (category_field, with_category, "category_field"),
        ):
            if field is not None and not found:
                raise InputError(
                    f"{setting(name, field)}: none of the {total:,} lines of {where} has a label in"
                    f" this field; the first has the fields {', '.join(fields):.300}"
                )
        if label_field is not None:
            _refuse_unknown(values, first, second or (), label_field, where)
        labels.categories = sorted({category for _, category in labels._found.values()})
        if len(labels.categories) > MOST_CATEGORIES:
            raise InputError(
                f"{setting('category_field', category_field)} has {len(labels.categories):,}"
                f" values; at most {MOST_CATEGORIES} are allowed"
            )
        return labels

    def _add(self, line: dict[str, Any], group: int, category: str, where: str) -> None:
        key = (line["task_id"], line.get("sample_idx"), line.get("position"))
        if self._found.setdefault(key, (group, category)) != (group, category):
            told = ", ".join(str(part) for part in key if part is not None)
            raise InputError(f"{where} has two different labels of the rows of {told}")
        self._by_position |= key[2] is not None
        self._by_task |= key[1] is None

    def of(self, keys: RowBlock) -> list[tuple[int, str] | None]:
        """Return group and category of each row; None for a row without labels."""
        found, get = [], self._found.get
        for task, sample, position in zip(
            keys.task_ids.tolist(), keys.sample_idx.tolist(), keys.position.tolist(), strict=True
        ):
            label = get((task, sample, position)) if self._by_position else None
            if label is None:
                label = get((task, sample, None))
            if label is None and self._by_task:
                label = get((task, None, None))
            found.append(label)
        return found


def labels_of(
    settings: GroupSettings, address: str, group: int, category_field: str | None = None
) -> Labels:
    """Return the labels of a run's rows.

    Args:
        settings: fields and values of the labels.
        address: address of the run.
        group: group of all rows, without a field of labels.
        category_field: field with the category; None: there are no categories.

    Raises:
        InputError: the labels cannot be used.
    """
    file = settings.labels_file
    storage = open_storage(address, writable=False)
    return Labels.read(
        run_lines(storage) if file is None else file_lines(file),
        address if file is None else file,
        label_field=settings.label_field,
        first=settings.first or (),
        second=settings.second,
        category_field=category_field,
        group=group,
    )


def _group_of(label: str | None, first: Sequence[str], second: Sequence[str] | None) -> int:
    """Return the group of a label; -1 for none."""
    if label is None:
        return -1
    if label in first:
        return 0
    return 1 if second is None or label in second else -1


def _refuse_unknown(
    values: Counter[str], first: Sequence[str], second: Sequence[str], field: str, where: str
) -> None:
    """Refuse labels that no line has."""
    for name, asked in (("first", first), ("second", second)):
        for label in asked:
            if label not in values:
                there = ", ".join(value for value, _ in values.most_common(SHOWN))
                more = "" if len(values) <= SHOWN else f" and {len(values) - SHOWN:,} more"
                raise InputError(
                    f"{setting(name, label)}: no line of {where} has this {field}; there are"
                    f" {there:.200}{more}"
                )


@functools.lru_cache(maxsize=1 << 16)
def in_test_half(task_id: str, seed: int, fraction: float) -> bool:
    """Return whether the rows of a task are for the test, not for choosing latents.

    All rows of a task are on one side, the same on every host and in every run.

    Args:
        task_id: the task.
        seed: another seed divides tasks differently.
        fraction: about this part of the tasks is for the test.
    """
    digest = hashlib.sha256(f"{seed}\0{task_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def test_halves(keys: RowBlock, seed: int, fraction: float) -> np.ndarray:
    """Return `[R]` bool: `in_test_half` of each row's task."""
    return np.array([in_test_half(task, seed, fraction) for task in keys.task_ids.tolist()], bool)
