"""Names of the files of a run, in its folder or below its prefix in a bucket.

metadata.json  outputs.jsonl  submission.json      derived from what follows
layer_6_batch_000001.pkl                           rows of a batch of one hook point
_run/run.json                                      identity of the run
_run/commits/000001.json                           commit record of a batch: the batch exists
_run/outputs/000001.jsonl                          output lines of a batch
_run/vocabulary.jsonl                              text of token ids, derived from the records
_run/closed.json  _run/self_check/00000.json       number of batches; results of self-checks
_run/lock.00000  _run/shared  _run/quarantine/     of processes, and of `repair`
"""

import re
from typing import NamedTuple

METADATA_FILE = "metadata.json"
OUTPUTS_FILE = "outputs.jsonl"
SUBMISSION_FILE = "submission.json"
DERIVED = {METADATA_FILE, OUTPUTS_FILE, SUBMISSION_FILE}
KEPT_METADATA = "metadata.json.before_repair"

RUN_FOLDER = "_run/"
RUN_FILE = "_run/run.json"
CLOSED_FILE = "_run/closed.json"
VOCABULARY_FILE = "_run/vocabulary.jsonl"
COMMITS = "_run/commits/"
OUTPUTS_FOLDER = "_run/outputs/"
SELF_CHECKS = "_run/self_check/"
QUARANTINE = "_run/quarantine/"
SHARED_FILE = "_run/shared"

_BATCH_FILE = re.compile(r"(?P<hook>.+)_batch_(?P<batch>\d{6,})\.(?P<extension>[a-z.]+)")
_OUTPUTS = re.compile(re.escape(OUTPUTS_FOLDER) + r"(\d{6,})\.jsonl")
_LOCK = re.compile(re.escape(RUN_FOLDER) + r"lock\.(\d+)")


class BatchFileName(NamedTuple):
    """The parts of the name of a batch's file."""

    hook_point: str
    batch_id: int
    extension: str


def batch_file(hook_point: str, batch_id: int, extension: str) -> str:
    """Return the name of a batch's file (or second file) of a hook point."""
    return f"{hook_point}_batch_{batch_id:06d}.{extension}"


def parse_batch_file(name: str) -> BatchFileName | None:
    """Return the parts of a batch file's name; None for any other name."""
    match = _BATCH_FILE.fullmatch(name)
    return match and BatchFileName(match["hook"], int(match["batch"]), match["extension"])


def record_name(batch_id: int) -> str:
    """Return the name of a batch's commit record."""
    return f"{COMMITS}{batch_id:06d}.json"


def parse_record_name(name: str) -> int | None:
    """Return the batch whose record has this name; None for any other name."""
    stem = name.removeprefix(COMMITS).removesuffix(".json")
    return int(stem) if stem.isdecimal() and record_name(int(stem)) == name else None


def outputs_name(batch_id: int) -> str:
    """Return the name of the file of a batch's output lines."""
    return f"{OUTPUTS_FOLDER}{batch_id:06d}.jsonl"


def parse_outputs_name(name: str) -> int | None:
    """Return the batch whose output lines have this name; None for any other name."""
    match = _OUTPUTS.fullmatch(name)
    return int(match[1]) if match else None


def self_check_name(process: int) -> str:
    """Return the name of the file of a process's self-check."""
    return f"{SELF_CHECKS}{process:05d}.json"


def lock_name(process: int) -> str:
    """Return the name of the lock of a process of the run."""
    return f"{RUN_FOLDER}lock.{process:05d}"


def parse_lock_name(name: str) -> int | None:
    """Return the process whose lock has this name; None for any other name."""
    match = _LOCK.fullmatch(name)
    return int(match[1]) if match else None
