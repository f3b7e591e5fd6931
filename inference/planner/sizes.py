"""How many files a plan gives, and how large each of them is, to the byte.

The keys of a unit's rows are made by the code that makes them in a run, zeros stand for the
activations, and the format itself turns both into the file whose size counts. Nothing of a size
depends on the values, only on numbers of rows, widths and lengths of names, so most units have been
seen before and cost nothing.

Exact is what does not depend on what the model says. Rows of generated tokens do, since a stop
token ends a text early: there the numbers are the most that can come. The text of the output
lines does too, of which only what stands in the prompts is known.
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
    """What units leave in the run's folder.

    Attributes:
        rows: of each hook point.
        sequences: samples that have rows.
        widths: of each hook point, numbers in a row.
        bytes: of each hook point, in all its files.
        activation_files: of all hook points.
        output_bytes: of the output lines; they stand in the units' parts and in `outputs.jsonl`.
        exact: rows, files and bytes are what they will be, and not the most that they can be.
        outputs_exact: so are the output lines, and not the least that they can be.
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
        """Of all hook points."""
        return sum(self.bytes.values())


def planned_files(job: Job, units: Iterable[Unit]) -> PlannedFiles:
    """The files of some units of a job."""
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
    """Keys of a unit's rows, if every sample gives all the rows that it can.

    Args:
        job: with the samples.
        unit: of it.
        later: rows of a sample's generated tokens.

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
    """The same rows with activations of hook points."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    zeros = {hook: np.zeros((len(keys), width), kind) for hook, width in widths.items()}
    return dataclasses.replace(keys, activations=zeros)


@dataclasses.dataclass(frozen=True)
class _Keys:
    """What of a block's keys decides the size of a file."""

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
    """Bytes, and number of the files that they stand in."""
    block = with_zeros(keys.block, {hook_point: width}, dtype)
    batch = FORMATS[file_format].serialise(hook_point, block, dtype)
    if batch.sidecar is None:
        return batch.nbytes, 1
    return batch.nbytes + len(batch.sidecar), 2


def _output_bytes(job: Job, unit: Unit) -> int:
    """Of the lines of a unit, as if nothing were generated."""
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
