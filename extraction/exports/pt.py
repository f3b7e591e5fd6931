"""One file for `torch.load(path, weights_only=True)`: a dictionary of tensors.

The arrays of `padded` as tensors, `sample_idx` as an int64 tensor and `task_ids` as a list of str.
A bfloat16 run stays bfloat16 unless float32 is asked for.

`torch.save` takes whole tensors, so the export has to fit into memory; those of `npz` and `memmap`
need not.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from extraction.errors import StoreError
from extraction.exports.padded import padded_arrays
from extraction.exports.run_rows import RunRows
from extraction.setting_names import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pt:
    """The target `pt`; the module describes its file."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16")
    needs: ClassVar[tuple[str, ...]] = ("torch",)

    def write(self, run: RunRows, place: Path) -> list[str]:
        """See `Target.write`."""
        import torch

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            try:
                return np.zeros(shape, dtype)
            except MemoryError:
                raise StoreError(
                    f"{name} {list(shape)} does not fit into memory, as pt requires; export fewer"
                    f" {setting('hook_points')}, or use {setting('to', 'npz')}"
                ) from None

        def tensor(array: np.ndarray) -> torch.Tensor:
            if array.dtype == np.uint16:
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(array)

        arrays, notes = padded_arrays(run, allocate)
        content: dict[str, torch.Tensor | list[str]] = {
            name: tensor(array) for name, array in arrays.items()
        }
        content["task_ids"] = run.samples.task_ids
        content["sample_idx"] = torch.from_numpy(run.samples.sample_idx)
        torch.save(content, place)
        return notes
