"""Runs of whole samples with their tokens, and the oracle: every latent of every row at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.run.identity import RunIdentity, begin
from extraction.run.rows import RowBlock, text_column
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata
from sae import SparseAutoencoder
from tests.sae.autoencoders import expected

HOOK = "layer_1"
D_IN = 6


def texts(token: int) -> bytes:
    """The bytes of a token; one of them is no UTF-8."""
    return b"\xe2" if token == 5 else f" t{token}".encode()


class DescribedRun:
    """Samples of several lengths, of which each row is kept, or only some positions.

    Attributes:
        rows: `[R, D_IN]` float32 of all rows, in the order of the run.
        samples: number of each row's sample.
        position: position of each row.
        token_ids: tokens of each sample.
    """

    def __init__(self, samples: int = 60, seed: int = 0, keep: float = 1.0):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(3, 20, samples)
        self.token_ids = [draw.integers(0, 30, n).tolist() for n in lengths]
        where = [
            (sample, position)
            for sample, n in enumerate(lengths.tolist())
            for position in range(n)
            if draw.random() < keep
        ]
        self.samples, self.position = np.array(where).T
        self.rows = draw.standard_normal((len(where), D_IN)).astype(np.float32)

    def write(
        self,
        folder: Path,
        *,
        samples_per_file: int = 7,
        file_format: str = "safetensors",
        outputs: bool = True,
        vocabulary: bool = True,
        **identity: Any,
    ) -> Path:
        """Write the run; return its folder."""
        storage, files = LocalStorage(folder), -(-len(self.token_ids) // samples_per_file)
        of_run: dict[str, Any] = {"hook_points": (HOOK,), "planned_batches": files}
        of_run |= {"model_name": "m", "file_format": file_format}
        named = RunIdentity.new(hidden_dim=self.rows.shape[1], **of_run, **identity)
        begin(storage, named)
        committer = Committer(storage, (HOOK,), file_format, "float32")
        for unit in range(files):
            first = unit * samples_per_file
            there = range(first, min(first + samples_per_file, len(self.token_ids)))
            rows = np.flatnonzero(np.isin(self.samples, there))
            lines = [
                {
                    "task_id": self.task_id(sample),
                    "sample_idx": sample % 2,
                    "prompt_token_ids": self.token_ids[sample][:2],
                    "generated_token_ids": self.token_ids[sample][2:],
                }
                for sample in there
            ]
            known = {token: texts(token) for token in range(30)} if vocabulary else None
            committer.commit(
                unit + 1, self.block(rows), lines if outputs else None, vocabulary=known
            )
        write_metadata(storage)
        return folder

    @staticmethod
    def task_id(sample: int) -> str:
        return f"task {sample // 2}"

    def block(self, rows: Sequence[int] | np.ndarray) -> RowBlock:
        ids = [self.token_ids[self.samples[i]][self.position[i]] for i in rows]
        return RowBlock(
            task_ids=text_column([self.task_id(int(self.samples[i])) for i in rows]),
            sample_idx=self.samples[rows].astype(np.int64) % 2,
            step=np.zeros(len(ids), np.int32),
            position=self.position[rows].astype(np.int32),
            token_id=np.array(ids, np.int32),
            timestamps=text_column(["2026-01-15T10:30:00+00:00"] * len(ids)),
            activations={HOOK: self.rows[rows]},
        )

    def latents(self, sae: SparseAutoencoder) -> np.ndarray:
        """`[R, d_sae]` float64 of all rows."""
        return expected(sae, self.rows)[0]
