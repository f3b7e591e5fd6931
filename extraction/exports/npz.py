"""One `.npz` file, as founding document 002 has it: an array `[N, S, D]` for each hook point.

The arrays of `padded`, and `task_ids` (unicode `[N]`) and `sample_idx` (int64 `[N]`). Activations
are float32, which `numpy.load` knows everywhere; bfloat16 is widened to it exactly.

The arrays are filled as mapped files and then stored in the archive without compression. So little
memory is needed, and for a while twice the room on the disk.
"""

import dataclasses
import shutil
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from extraction.exports.new_place import reserve
from extraction.exports.padded import padded_arrays
from extraction.exports.run_rows import RunRows

COPIED_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Npz:
    """The target `npz`; the module describes its file."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    needs: ClassVar[tuple[str, ...]] = ()

    def write(self, run: RunRows, place: Path) -> list[str]:
        """See `Target.write`."""
        files: dict[str, Path] = {}

        def new_file(name: str) -> Path:
            # By number, since an array's name may not be a valid file name.
            files[name] = place.with_name(f"array-{len(files)}.npy")
            return files[name]

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            path = new_file(name)
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            reserve(path)
            return array

        arrays, notes = padded_arrays(run, allocate)
        del arrays  # closes the mapped files
        np.save(new_file("task_ids"), np.array(run.samples.task_ids, dtype=str))
        np.save(new_file("sample_idx"), run.samples.sample_idx)
        with zipfile.ZipFile(place, "x", zipfile.ZIP_STORED) as archive:
            for name, path in files.items():
                member = zipfile.ZipInfo(f"{name}.npy")
                with path.open("rb") as source, archive.open(member, "w", force_zip64=True) as to:
                    shutil.copyfileobj(source, to, COPIED_BYTES)
                path.unlink()
        return notes
