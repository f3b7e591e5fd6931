"""Interventions of a run, from a file: which vectors change which hook points, where and how much.

    # steer.yaml
    interventions:
      - hook_point: layer_12
        vectors: directions.safetensors     # beside this file
        name: latent_17
        strength: 0.5
        unit: token_norm
        positions: [entity]

`--interventions steer.yaml` applies it to every sample. See docs/interventions.md.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from extraction.errors import StoreError, UnsafeFileError
from extraction.reading.dataset import ActivationDataset
from extraction.setting_names import setting
from extraction.storage.regular_files import open_regular
from inference.errors import InputError
from inference.inputs.positions import Positions
from inference.inputs.prompt_tokens import PromptTokens
from inference.settings.yaml_file import build, read_yaml
from qwen_hooks.config import QwenConfig
from qwen_hooks.errors import ModelError
from qwen_hooks.interventions import Add, Clamp, Interventions, Operation, ProjectOut, intervene

MOST_VECTOR_BYTES = 1 << 30
"""Most bytes of a file of vectors."""

MOST_NUMBERS = 1 << 20
"""Most numbers of a run's vectors; `_run/run.json` holds them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention:
    """One intervention, as the file describes it.

    Attributes:
        hook_point: name, alias or pattern of the hook points to change.
        vectors: safetensors file with the vector, `[W]`, relative to the folder of the description.
        name: tensor in that file; None: the only one.
        operation: `add` (strength times the vector), `project_out` (x less its part along the
            vector, strength times), or `clamp` (the component along the vector from low to high).
        strength: number that the vector is multiplied by.
        unit: unit of the strength of `add`. raw: of the vector as it is; token_norm: of the norm of
            each token's own x; mean_norm: of `mean_norm`. For the last two the vector's own length
            has no meaning.
        mean_norm: mean norm of the hook point's rows.
        mean_norm_of: run to read it from instead, a folder or an address.
        low: smallest component of `clamp`; None: no limit.
        high: largest component of `clamp`; None: no limit.
        when: tokens to change: `all`, those of the `prompt`, or the `generated` ones.
        positions: selectors of tokens of the prompt, as for `--positions`; None: all tokens.
    """

    hook_point: str
    vectors: str
    name: str | None = None
    operation: Literal["add", "project_out", "clamp"] = "add"
    strength: float = 1.0
    unit: Literal["raw", "token_norm", "mean_norm"] = "raw"
    mean_norm: float | None = None
    mean_norm_of: str | None = None
    low: float | None = None
    high: float | None = None
    when: Literal["all", "prompt", "generated"] | None = None
    positions: list[str] | None = None

    def __post_init__(self):
        for field in ("strength", "mean_norm", "low", "high"):
            value = getattr(self, field)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{field} must be a finite number, not {value}")
        if self.operation != "add" and self.unit != "raw":
            raise InputError(f"unit {self.unit} is for the operation add, not {self.operation}")
        given = (self.mean_norm is not None) + (self.mean_norm_of is not None)
        if given != (self.unit == "mean_norm"):
            raise InputError("unit mean_norm, and only it, needs mean_norm or mean_norm_of")
        if self.mean_norm is not None and self.mean_norm <= 0:
            raise InputError(f"mean_norm must be above 0, not {self.mean_norm}")
        bounds = self.low is not None or self.high is not None
        if bounds != (self.operation == "clamp"):
            raise InputError("the operation clamp, and only it, needs low, high or both")
        if self.operation == "clamp" and self.strength != 1.0:
            raise InputError("the operation clamp has low and high, and no strength")
        if self.positions is not None:
            Positions(self.positions)
            if self.when in ("all", "generated"):
                raise InputError(
                    "positions choose tokens of the prompt; for generated tokens write another"
                    " intervention, with when: generated"
                )

    @property
    def apply_to(self) -> str:
        """The tokens that are changed; `prompt` where positions are given."""
        return self.when or ("all" if self.positions is None else "prompt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """The content of a file of interventions."""

    interventions: list[Intervention]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """The interventions of a run.

    Attributes:
        interventions: what each does.
        vectors: float32 `[W]` of each.
    """

    interventions: Sequence[Intervention]
    vectors: Sequence[np.ndarray]

    def positions_of(self, prompt: PromptTokens) -> tuple[tuple[int, ...], ...]:
        """Return the chosen positions of a prompt for each intervention; none where it has all."""
        return tuple(() if each is None else each.of_prompt(prompt) for each in self._positions)

    @functools.cached_property
    def _positions(self) -> list[Positions | None]:
        chosen = [entry.positions for entry in self.interventions]
        return [None if selectors is None else Positions(selectors) for selectors in chosen]

    def of_samples(
        self,
        lengths: Sequence[int],
        positions: Sequence[Sequence[Sequence[int]]],
        config: QwenConfig,
    ) -> Interventions:
        """Return the operations for the samples of a run.

        Args:
            lengths: number of tokens of each sample's prompt.
            positions: of each sample, from `positions_of`.
            config: configuration of the model.

        Raises:
            InputError: a hook point does not exist or has another width.
        """
        operations: dict[str, list[Operation]] = {}
        for number, entry in enumerate(self.interventions):
            chosen = None
            if entry.positions is not None:
                rows = [sample[number] for sample in positions]
                chosen = np.full((len(rows), max([1, *map(len, rows)])), -1, np.int32)
                for row, places in zip(chosen, rows, strict=True):
                    row[: len(places)] = places
            operation = _operation(entry, self.vectors[number], chosen)
            operations.setdefault(entry.hook_point, []).append(operation)
        try:
            return intervene(operations, config, np.asarray(lengths, np.int32))
        except ModelError as error:
            raise InputError(f"{setting('interventions')}: {error}") from None

    def record(self) -> list[dict[str, Any]]:
        """Return JSON values from which `from_record` makes these interventions again."""
        return [
            dataclasses.asdict(entry)
            | {
                "vector": {
                    "dtype": "float32",
                    "shape": list(vector.shape),
                    "base64": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
                }
            }
            for entry, vector in zip(self.interventions, self.vectors, strict=True)
        ]

    def digest(self) -> str:
        """Return the sha256 of what is done; files may be renamed."""
        entries = [{**entry, "vectors": "", "name": ""} for entry in self.record()]
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def from_record(record: Sequence[Mapping[str, Any]]) -> Steering:
    """Return the interventions that a run's metadata hold in `run.interventions`.

    Raises:
        InputError: they are damaged.
    """
    entries, vectors = [], []
    for number, fields in enumerate(record):
        values = dict(fields)
        where = f"interventions[{number}]"
        try:
            data = base64.b64decode(values.pop("vector")["base64"], validate=True)
            vectors.append(np.frombuffer(data, "<f4").astype(np.float32))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where} holds no vector: {error!r:.100}") from None
        entries.append(build(Intervention, values, where))
    return Steering(interventions=entries, vectors=vectors)


def read_steering(path: str | Path, weights_sha256: str | None = None) -> Steering:
    """Read a file of interventions, and the vectors that it names.

    Args:
        path: a YAML file.
        weights_sha256: digest of the model that is to be changed; vectors that were made for
            another model are refused. None: not compared.

    Raises:
        InputError: the file or a vector is wrong.
    """
    path = Path(path)
    content = read_yaml(path)
    try:
        listed = build(Description, content).interventions
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    entries, vectors = [], []
    for number, entry in enumerate(listed):
        where = f"{path}: interventions[{number}]"
        vectors.append(_vector(entry, path.parent, where, weights_sha256))
        entries.append(_with_mean_norm(entry, path.parent, where))
    if sum(map(len, vectors)) > MOST_NUMBERS:
        raise InputError(f"{path}: the vectors hold more than {MOST_NUMBERS:,} numbers together")
    return Steering(interventions=entries, vectors=vectors)


def _operation(entry: Intervention, vector: np.ndarray, chosen: np.ndarray | None) -> Operation:
    where: dict[str, Any] = {"apply_to": entry.apply_to, "positions": chosen}
    if entry.operation == "project_out":
        return ProjectOut(directions=vector[None], strength=entry.strength, **where)
    if entry.operation == "clamp":
        low = -math.inf if entry.low is None else entry.low
        high = math.inf if entry.high is None else entry.high
        return Clamp(direction=vector, low=low, high=high, **where)
    if entry.unit == "mean_norm":
        assert entry.mean_norm is not None
        length = np.linalg.norm(vector.astype(np.float64))
        vector = (vector * (entry.mean_norm / length)).astype(np.float32)
    relative = entry.unit == "token_norm"
    return Add(vector=vector, coefficient=entry.strength, relative=relative, **where)


def _vector(
    entry: Intervention, folder: Path, where: str, weights_sha256: str | None
) -> np.ndarray:
    """Return the vector of an intervention, float32 `[W]`."""
    from safetensors import SafetensorError, safe_open

    path = folder / Path(entry.vectors).expanduser()
    try:
        with open_regular(path) as stream:
            size = stream.seek(0, 2)
        if size > MOST_VECTOR_BYTES:
            raise InputError(f"{where}: {path} has more than {MOST_VECTOR_BYTES >> 20} MiB")
        with safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            made_for = (file.metadata() or {}).get("weights_sha256")
            name = entry.name if entry.name is not None or len(names) != 1 else names[0]
            if name not in names:
                told = "several vectors; give name, one of" if name is None else f"no {name!r}; "
                told += "" if name is None else "there are"
                raise InputError(f"{where}: {path} has {told} {', '.join(names[:8])!s:.200}")
            values = file.get_tensor(name)
    except (OSError, UnsafeFileError, SafetensorError, TypeError) as error:
        raise InputError(f"{where}: {path} cannot be read: {error}") from None
    if weights_sha256 and made_for and made_for != weights_sha256:
        raise InputError(
            f"{where}: {path} was made for other weights ({made_for[:12]}...) than the model's"
            f" ({weights_sha256[:12]}...)"
        )
    if values.ndim != 1 or values.dtype.kind != "f":
        raise InputError(
            f"{where}: {name!r} must be one vector of floating-point numbers, not {values.dtype}"
            f" {list(values.shape)}"
        )
    with np.errstate(over="ignore"):
        vector = values.astype(np.float32)
    if not np.isfinite(vector).all() or not vector.any():
        raise InputError(f"{where}: {name!r} must have finite numbers, and one that is not 0")
    return vector


def _with_mean_norm(entry: Intervention, folder: Path, where: str) -> Intervention:
    """Return an intervention with the mean norm of the run that it names."""
    if entry.mean_norm_of is None:
        return entry
    address = entry.mean_norm_of
    if "://" not in address:
        address = str(folder / Path(address).expanduser())
    try:
        info = ActivationDataset(address, entry.hook_point).info
        found = info.statistics.get(next(iter(info.width)), {})
    except (StoreError, ValueError) as error:
        raise InputError(f"{where}: mean_norm_of: {error}") from None
    if not found.get("mean_norm"):
        raise InputError(f"{where}: mean_norm_of: {address} records no mean norm above 0")
    return dataclasses.replace(entry, mean_norm=float(found["mean_norm"]), mean_norm_of=None)
