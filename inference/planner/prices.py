"""Prices of chips per hour: a dated table, which a JSON file may replace.

    {"date": "2026-11-01", "source": "my contract",
     "per_chip_hour": {"v5e": {"on_demand": 0.84, "spot": null}}}

Prices change, spot prices every month and from region to region. Look yours up at
https://cloud.google.com/tpu/pricing and give them as such a file.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extraction.setting_names import setting
from inference.errors import InputError

KINDS = ("on_demand", "spot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in US dollars.

    Attributes:
        date: date of the prices.
        source: origin of the prices.
        per_chip_hour: dollars by generation and kind; a kind may be missing.
    """

    date: str
    source: str
    per_chip_hour: Mapping[str, Mapping[str, float]]

    def dollars(self, generation: str, chips: int, hours: float) -> dict[str, float]:
        """Return the dollars of chips for some hours, by kind; empty for an unknown generation."""
        kinds = self.per_chip_hour.get(generation, {})
        return {kind: chips * hours * price for kind, price in kinds.items()}


PRICES = Prices(
    date="2026-11-21",
    source="SkyPilot's catalogue of Google's prices (v8, commit 8427bbff) as read on that day;"
    " us-central1, v4 us-central2; on demand the same in most of the US, spot up to 2.5 times as"
    " much; replace it by your own with --prices",
    per_chip_hour={
        "v4": {"on_demand": 3.22, "spot": 0.9215},
        "v5e": {"on_demand": 1.20, "spot": 0.245},
        "v5p": {"on_demand": 4.20, "spot": 0.929},
        "v6e": {"on_demand": 2.70, "spot": 0.573},
    },
)
"""Default prices, of chips only, without disks, buckets and traffic."""


def read_prices(path: str) -> Prices:
    """Return the prices in a JSON file.

    Raises:
        InputError: the file is not a table of prices; the message says why.
    """
    try:
        document: Any = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        table = {
            generation: {
                kind: float(price) if type(price) is int else price
                for kind, price in kinds.items()
                if price is not None
            }
            for generation, kinds in document["per_chip_hour"].items()
        }
        prices = Prices(date=document["date"], source=document["source"], per_chip_hour=table)
    except OSError as error:
        raise InputError(f"{setting('prices', path)}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{setting('prices', path)} is not a JSON object with date, source and per_chip_hour:"
            f" {error!r}"
        ) from None
    for generation, kinds in table.items():
        for kind, price in kinds.items():
            number = isinstance(price, int | float) and not isinstance(price, bool)
            if kind not in KINDS or not number or not 0 <= price < math.inf:
                raise InputError(
                    f"{setting('prices', path)}: {generation} has {kind}: {price!r}; a price is a"
                    f" number of dollars for {' or '.join(KINDS)}"
                )
    return prices
