"""The number of files of a plan, and the size of each, to the byte.

The keys of a unit's rows are made by the code of a run, the activations are zeros, and the format
serialises both into a file, whose size is taken. A size does not depend on values, only on numbers
of rows, widths and lengths of names, so the sizes of most units are in a cache.

Sizes are exact if they do not depend on the generated text. Rows of generated tokens do, since a
stop token ends a text early: then the numbers are upper limits. Output lines do too: for them only
the part that the prompts determine is counted.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np

from extraction.formats import FORMATS
from extraction.run.rows import RowBlock
from inference.engine.batches import SampleResult, unit_rows
from inference.engine.job import Job
from inference.engine.plan import Unit
from inference.inputs.samples import decode_text
from inference.outputs import NO_POSITION, output_line, skipped_line
from qwen_hooks.hook_points import hook_widths


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedFiles:
    """The files that units leave in the run's folder.

    Attributes:
        rows: number of rows of each hook point.
        sequences: number of samples that have rows.
        widths: width of each hook point's rows.
        bytes: bytes of all files of each hook point.
        activation_files: number of files of all hook points.
        output_bytes: bytes of the output lines, which are stored twice: by unit and joined.
        exact: whether rows, files and bytes are exact, and not upper limits.
        outputs_exact: whether `output_bytes` is exact, and not a lower limit.
    """

    rows: int
    sequences: int
    widths: Mapping[str, int]
    bytes: Mapping[str, int]
    activation_files: int
    output_bytes: int
    exact: bool
    outputs_exact: bool

    @property
    def activation_bytes(self) -> int:
        """Bytes of the files of all hook points."""
        return sum(self.bytes.values())


def planned_files(job: Job, units: Iterable[Unit]) -> PlannedFiles:
    """Return the files of some units of a job."""
    config, hook_points = (
        job.prepared.pretrained.checkpoint.config,
        job.prepared.pretrained.model.hook_points,
    )
    widths = hook_widths(hook_points, config)
    dtype = job.settings.stored_dtype(str(job.prepared.pretrained.dtype))
    later = job.prepared.positions.most_generated(job.settings.max_new_tokens)
    rows = sequences = files = output_bytes = 0
    sizes = dict.fromkeys(hook_points, 0)
    for unit in units:
        output_bytes += _output_bytes(job, unit)
        keys = unit_keys(job, unit, later)
        if keys is None:
            continue
        rows += len(keys)
        sequences += sum(bool(job.prepared.samples[n].positions or later) for n in unit.samples)
        for hook in hook_points:
            batch, parts = _file_size(_Keys.of(keys), job.settings.format, hook, widths[hook],
                                      dtype)  # fmt: skip
            sizes[hook] += batch
            files += parts
    return PlannedFiles(
        rows=rows,
        sequences=sequences,
        widths=widths,
        bytes=sizes,
        activation_files=files,
        output_bytes=output_bytes,
        exact=later == 0,
        outputs_exact=job.settings.max_new_tokens == 0,
    )


def unit_keys(job: Job, unit: Unit, later: int) -> RowBlock | None:
    """Return the keys of a unit's rows, if every sample gives all the rows that it can.

    Args:
        job: the job.
        unit: one of its units.
        later: number of rows of a sample's generated tokens.

    Returns:
        A block without hook points, or None if there are no rows.
    """
    if not unit.bucket:
        return None
    results = []
    for sample in (job.prepared.samples[number] for number in unit.samples):
        generated = range(len(sample.token_ids), len(sample.token_ids) + later)
        result = SampleResult(
            sample=sample,
            token_ids=[0] * later,
            positions=np.array([*sample.positions, *generated], np.int32),
            rows={},
        )
        results.append(result)
    return unit_rows(results)


def with_zeros(keys: RowBlock, widths: Mapping[str, int], dtype: str) -> RowBlock:
    """Return the same rows with activations of zeros."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    zeros = {hook: np.zeros((len(keys), width), kind) for hook, width in widths.items()}
    return dataclasses.replace(keys, activations=zeros)


@dataclasses.dataclass(frozen=True)
class _Keys:
    """The properties of a block's keys that determine the size of a file."""

    rows: int
    texts: int
    text_bytes: int
    wide: bool
    block: RowBlock = dataclasses.field(compare=False)

    @classmethod
    def of(cls, block: RowBlock) -> "_Keys":
        texts = dict.fromkeys(block.task_ids.tolist())
        return cls(
            rows=len(block),
            texts=len(texts),
            text_bytes=len("".join(texts).encode(errors="replace")),
            wide=bool((block.sample_idx != block.sample_idx.astype(np.int32)).any()),
            block=block,
        )


@functools.lru_cache(maxsize=4096)
def _file_size(
    keys: _Keys, file_format: str, hook_point: str, width: int, dtype: str
) -> tuple[int, int]:
    """Return the bytes and the number of files of a batch of one hook point."""
    block = with_zeros(keys.block, {hook_point: width}, dtype)
    batch = FORMATS[file_format].serialise(hook_point, block, dtype)
    if batch.sidecar is None:
        return batch.nbytes, 1
    return batch.nbytes + len(batch.sidecar), 2


def _output_bytes(job: Job, unit: Unit) -> int:
    """Return the bytes of a unit's output lines, as if nothing were generated."""
    size = 0
    for sample in (job.prepared.samples[number] for number in unit.samples):
        reason = job.prepared.reasons[sample.number]
        if reason is not None:
            line = skipped_line(sample, reason)
        else:
            later = job.prepared.positions.most_generated(job.settings.max_new_tokens)
            no_rows = None if sample.positions or later else NO_POSITION
            text = decode_text(job.prepared.pretrained.tokenizer, [])
            line = output_line(sample, [], text, "length", no_rows)
        size += len(json.dumps(line, ensure_ascii=False).encode()) + 1
    return size
