"""Settings of the rows that are left out, of every command that reads a run's rows."""

import dataclasses
from typing import Any, ClassVar

from inference.settings.fields import Settings, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFilterSettings(Settings):
    """Rows that are left out for their tokens."""

    group: ClassVar[str] = "rows that are left out"

    exclude_special: bool = flag(
        "Leave out rows of the special tokens that the run records.",
        decides="rows",
        default=False,
    )
    skip_first: int = flag(
        "Leave out rows at positions below this number.", decides="rows", default=0, least=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFilterSettings(TokenFilterSettings):
    """Rows that are left out for their tokens or their norms."""

    max_norm_multiple: float | None = flag(
        "Leave out rows whose norm is above this many times the median: attention sinks.",
        decides="rows",
        default=None,
        example=10.0,
        least=1e-6,
    )

    @property
    def filters(self) -> dict[str, Any]:
        """Arguments of `ActivationDataset.kept_rows`."""
        return {
            entry.name: getattr(self, entry.name) for entry in dataclasses.fields(RowFilterSettings)
        }
