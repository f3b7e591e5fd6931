"""The files of `python -m sae latents`: `latents.jsonl`, a line for each latent, and the page.

    {"latent": 17, "density": 0.002, "active_rows": 81, "mean": 3.1, "max": 9.4,
     "decoder_norm": 1.0,
     "top": [{"row": 512, "task_id": "a", "sample_idx": 0, "position": 31, "activation": 9.4,
              "at": 2, "token_ids": [...], "tokens": [...], "activations": [...]}, ...],
     "ranges": [{"from": 4.2, "to": 9.4, "rows": [...]}, ...],
     "nearest": [{"latent": 40, "cosine": 0.61}, ...],
     "logit_lens": {"top": [{"token_id": 5, "token": " the", "logit": 2.1}, ...], "bottom": [...]}}

`mean` is over the rows in which the latent is active. `at` is the place of the row's own token in
`tokens`; `activations` are null at tokens without rows, `tokens` where the text is not recorded.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from extraction.storage import open_storage
from sae.files import disk_errors_told
from sae.latents.examples import TOP
from sae.latents.run import Latents

LINES_FILE, PAGE_FILE = "latents.jsonl", "latents.html"


def lines_of(latents: Latents) -> Iterator[dict[str, Any]]:
    """Yield what is known of each latent, as JSON values."""
    found, examples = latents.found, latents.examples
    ends = np.searchsorted(examples.latents, np.arange(len(found.numbers) + 1))
    density, mean = found.density, found.mean
    norms = latents.sae.decoder_norms[found.numbers]
    for place, number in enumerate(found.numbers.tolist()):
        shown = range(ends[place], ends[place + 1])
        of_range: dict[int, list[dict[str, Any]]] = {}
        for example in shown:
            of_range.setdefault(int(examples.ranges[example]), []).append(row_of(latents, example))
        line = {
            "latent": number,
            "density": float(density[place]),
            "active_rows": int(found.active[place]),
            "mean": float(mean[place]),
            "max": float(found.largest[place]),
            "decoder_norm": float(norms[place]),
            "top": of_range.get(TOP, []),
            "ranges": [
                {
                    "from": float(examples.bounds[place, number_][0]),
                    "to": float(examples.bounds[place, number_][1]),
                    "rows": rows,
                }
                for number_, rows in of_range.items()
                if number_ != TOP
            ],
            "nearest": [
                {"latent": int(other), "cosine": short(cosine)}
                for other, cosine in zip(
                    latents.neighbours.numbers[place],
                    latents.neighbours.cosines[place],
                    strict=True,
                )
            ],
        }
        if latents.lens is not None:
            line["logit_lens"] = lens_of(latents, place)
        yield line


def short(value: float) -> float | None:
    """Return a number with four digits; None for one that is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def row_of(latents: Latents, example: int) -> dict[str, Any]:
    """Return a row and the tokens around it, without those beyond the sample's ends."""
    contexts, examples = latents.contexts, latents.examples
    window = contexts.window(example)
    ids = contexts.token_ids[example, window].tolist()
    return {
        "row": int(examples.rows[example]),
        "task_id": str(contexts.task_ids[example]),
        "sample_idx": int(contexts.sample_idx[example]),
        "position": int(contexts.position[example]),
        "activation": float(examples.values[example]),
        "at": contexts.before - window.start,
        "token_ids": ids,
        "tokens": [latents.texts.get(token) for token in ids],
        "activations": [short(value) for value in contexts.activations[example, window].tolist()],
    }


def lens_of(latents: Latents, place: int) -> dict[str, Any]:
    """Return the logit lens of the latent at a place."""
    lens = latents.lens
    assert lens is not None
    return {
        end: [
            {"token_id": token, "token": lens.texts[token], "logit": short(logit)}
            for token, logit in zip(ids[place].tolist(), logits[place].tolist(), strict=True)
        ]
        for end, ids, logits in (
            ("top", lens.top, lens.top_logits),
            ("bottom", lens.bottom, lens.bottom_logits),
        )
    }


def write(latents: Latents) -> list[str]:
    """Write the files, the page after its data, and return their addresses.

    Raises:
        StoreError: the output cannot be used.
        StorageUnavailableError: the disk is full, or fails.
    """
    from sae.latents.page import page_of
    from sae.latents.page_data import data_of

    storage = open_storage(latents.settings.output_dir)
    lines = [
        memoryview(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        for line in lines_of(latents)
    ]
    data = data_of(latents)
    page = page_of(latents, data).encode()
    with disk_errors_told(storage, "written"):
        storage.replace(LINES_FILE, lines)
        for name, content in data.files().items():
            storage.replace(name, content)
        storage.replace(PAGE_FILE, page)
    return [f"{latents.settings.output_dir}/{name}" for name in (LINES_FILE, PAGE_FILE)]


def summary(latents: Latents) -> str:
    """Return the lines that the command prints."""
    found = latents.found
    dead = int((found.active == 0).sum())
    said = [
        f"{len(found.numbers):,} latents of {latents.settings.sae} on {found.rows:,} rows of"
        f" {latents.hook_point}: {dead:,} are active in no row; a row has"
        f" {found.active.sum() / found.rows:.1f} active latents"
    ]
    left_out = found.all_left_out.items()
    said += [f"rows left out, {name}: {count:,}" for name, count in left_out if count]
    return "\n".join(said)
