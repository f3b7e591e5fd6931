"""The setting of a pass over a run's rows in parts; `part_files` has their files."""

import dataclasses
import re
from typing import ClassVar

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.fields import Settings, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartSettings(Settings):
    """The part of the rows that a process reads."""

    group: ClassVar[str] = "output"

    part: str | None = flag(
        "Part of the rows that this process reads: 0/4 is the first of four. The processes share"
        " --output_dir, and the last one to end writes the results. Left out: all rows.",
        decides="nothing",
        default=None,
        example="0/4",
    )

    @property
    def parts(self) -> tuple[int, int]:
        """Number of this part, from 0, and number of parts."""
        first, _, count = (self.part or "0/1").partition("/")
        return int(first), int(count)

    def _check(self) -> None:
        super()._check()
        if self.part is None:
            return
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", self.part) or self.parts[0] >= self.parts[1]:
            raise InputError(
                f"{setting('part', self.part)} is no part of the rows; of four parts the first is"
                " 0/4, the last 3/4"
            )
