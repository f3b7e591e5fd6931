"""The output lines of a batch, which somebody else may have written."""

from typing import Any

from extraction.documents import is_count, read_json
from extraction.errors import CorruptBatchError

MOST_OBJECTS = 100_000
"""Most objects and lists of a line, plus one for each 64 bytes, about their size in memory."""


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """Return the output lines of a batch.

    Raises:
        CorruptBatchError: a line is not an output line.
    """
    lines = []
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text:
            continue
        if text.count(b"{") + text.count(b"[") > MOST_OBJECTS + len(text) // 64:
            raise CorruptBatchError(f"line {number} holds more objects than its size allows")
        try:
            line = read_json(text)
        except ValueError as error:
            raise CorruptBatchError(f"line {number} is not JSON: {error}") from None
        if (
            type(line) is not dict
            or type(line.get("task_id")) is not str
            or type(line.get("sample_idx")) is not int
            or not is_count(abs(line["sample_idx"]))
            or type(line.get("generated_token_ids", [])) is not list
        ):
            raise CorruptBatchError(f"line {number} is not an output line of a sample")
        lines.append(line)
    return lines
