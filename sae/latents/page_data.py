"""The data of the page: an index of all latents, and the rows that are shown, in chunks.

Up to `MOST_EMBEDDED` bytes stand in the page; above, in `latents_data/` beside it, as scripts that
hand the page their JSON, since a page that is opened from a disk may not read other files. Texts
are made printable here; the page only ever shows them as text.

    index  {"latents": [[number, density, active rows, mean, max, decoder norm, chunk, top tokens,
                         logit lens tokens], ...], "words": {token id: text}, "context": 20}
    chunk  {"tasks": [...], "latents": {number: {"lens": [[[id, logit], ...], [...]],
            "nearest": [[number, cosine], ...], "bounds": [[from, to], ...],
            "rows": [[range, row, task, sample, position, activation, at, [ids], [levels]], ...]}}}

Levels are activations in thousandths of the latent's largest, -1 at tokens without rows.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extraction.printable import printable
from extraction.report.markup import cut, token_signs
from extraction.run.rows import UNKNOWN
from sae.latents.examples import TOP
from sae.latents.results import short
from sae.latents.run import Latents

MOST_EMBEDDED = 20_000_000
CHUNK_BYTES = 1 << 20
FOLDER = "latents_data"
LEVELS = 1000
LONGEST_TASK = 120
PEAKS = 8
"""Most distinct tokens of top rows in the list."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageData:
    """The JSON texts of a page.

    Attributes:
        index: what the list shows.
        chunks: what is shown of each latent, some latents in each.
        most_embedded: most bytes that stand in the page.
    """

    index: str
    chunks: Sequence[str]
    most_embedded: int = MOST_EMBEDDED

    @property
    def is_embedded(self) -> bool:
        """Whether the page holds the data itself."""
        return len(self.index) + sum(map(len, self.chunks)) <= self.most_embedded

    def embedded(self) -> Mapping[str, str]:
        """Return the texts that stand in the page, by the ids of their elements."""
        if not self.is_embedded:
            return {}
        named = {f"chunk-{number}": chunk for number, chunk in enumerate(self.chunks)}
        return {"index": self.index, **named}

    def files(self) -> Mapping[str, bytes]:
        """Return the files beside the page, by name; none if the page holds the data."""
        if self.is_embedded:
            return {}
        named = {f"{FOLDER}/index.js": f"latentsIndex({self.index});"}
        for number, chunk in enumerate(self.chunks):
            named[f"{FOLDER}/{number}.js"] = f"latentsChunk({number},{chunk});"
        return {name: text.encode("ascii") for name, text in named.items()}


def data_of(latents: Latents) -> PageData:
    """Return the data of the page."""
    found, examples = latents.found, latents.examples
    ends = np.searchsorted(examples.latents, np.arange(len(found.numbers) + 1))
    levels = _levels(latents)
    norms = latents.sae.decoder_norms[found.numbers]
    index: list[list[Any]] = []
    chunks, tasks, open_chunk, size = [], {}, {}, 0
    for place, number in enumerate(found.numbers.tolist()):
        shown = range(int(ends[place]), int(ends[place + 1]))
        told = _latent(latents, place, shown, levels, tasks)
        index.append(
            [
                number,
                short(float(found.density[place])),
                int(found.active[place]),
                short(float(found.mean[place])),
                short(float(found.largest[place])),
                short(float(norms[place])),
                len(chunks),
                _peaks(latents, shown),
                [] if latents.lens is None else latents.lens.top[place].tolist(),
            ]
        )
        open_chunk[number] = told
        size += len(told)
        if size >= CHUNK_BYTES or place == len(found.numbers) - 1:
            chunks.append(_chunk(tasks, open_chunk))
            tasks, open_chunk, size = {}, {}, 0
    words = {**latents.texts, **(latents.lens.texts if latents.lens else {})}
    document = {
        "latents": index,
        "words": {str(token): token_signs(text) for token, text in sorted(words.items()) if text},
        "levels": LEVELS,
    }
    return PageData(index=_dumps(document), chunks=chunks)


def _levels(latents: Latents) -> np.ndarray:
    """Return activations `[E, W]` in thousandths of the largest of their latent."""
    largest = latents.found.largest[latents.examples.latents][:, None]
    values = latents.contexts.activations
    with np.errstate(invalid="ignore"):
        share = np.ceil(values / np.maximum(largest, np.finfo(np.float32).tiny) * LEVELS)
    return np.nan_to_num(np.clip(share, 0, LEVELS), nan=-1).astype(np.int64)


def _peaks(latents: Latents, shown: range) -> list[int]:
    """Return the distinct tokens of a latent's top rows, from the largest activation on."""
    top = [e for e in shown if latents.examples.ranges[e] == TOP]
    ids = latents.contexts.token_ids[top, latents.contexts.before].tolist() if top else []
    return [token for token in dict.fromkeys(ids) if token != UNKNOWN][:PEAKS]


def _latent(
    latents: Latents, place: int, shown: range, levels: np.ndarray, tasks: dict[str, int]
) -> str:
    """Return the JSON text of what is shown of a latent; add its tasks to those of a chunk."""
    rows = [_row(latents, example, levels[example], tasks) for example in shown]
    near = latents.neighbours
    told: dict[str, Any] = {
        "bounds": [
            [short(end) for end in pair] for pair in latents.examples.bounds[place].tolist()
        ],
        "nearest": [
            [number, short(cosine)]
            for number, cosine in zip(
                near.numbers[place].tolist(), near.cosines[place].tolist(), strict=True
            )
        ],
        "rows": rows,
    }
    if latents.lens is not None:
        lens = latents.lens
        told["lens"] = [
            [
                [token, short(logit)]
                for token, logit in zip(ids[place].tolist(), logits[place].tolist(), strict=True)
            ]
            for ids, logits in ((lens.top, lens.top_logits), (lens.bottom, lens.bottom_logits))
        ]
    return _dumps(told)


def _row(latents: Latents, example: int, levels: np.ndarray, tasks: dict[str, int]) -> list[Any]:
    contexts, examples = latents.contexts, latents.examples
    window = contexts.window(example)
    task = printable(cut(str(contexts.task_ids[example]), LONGEST_TASK))
    return [
        int(examples.ranges[example]),
        int(examples.rows[example]),
        tasks.setdefault(task, len(tasks)),
        int(contexts.sample_idx[example]),
        int(contexts.position[example]),
        short(float(examples.values[example])),
        contexts.before - window.start,
        contexts.token_ids[example, window].tolist(),
        levels[window].tolist(),
    ]


def _chunk(tasks: Mapping[str, int], told: Mapping[int, str]) -> str:
    """Return the JSON text of a chunk."""
    latents = ",".join(f'"{number}":{text}' for number, text in told.items())
    return f'{{"tasks":{_dumps(list(tasks))},"latents":{{{latents}}}}}'


def _dumps(value: Any) -> str:
    """Return compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
