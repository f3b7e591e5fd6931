"""Several autoencoders on one read: the list `saes` of a `--config` file.

activations_dir: ./activations
hook_points: [layer_12]
saes:
  - {k: 32}
  - {k: 64, random_seed: 1}
  - {name: wide, d_sae: 32x}
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inference.errors import InputError
from inference.settings.yaml_file import read_yaml
from sae.training.settings import SaeSettings

LIST, NAME = "saes", "name"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,99}")


class Entry(NamedTuple):
    """An autoencoder of a sweep.

    Attributes:
        name: of its folder; empty: that of the hook point alone.
        settings: its settings.
    """

    name: str
    settings: SaeSettings


def entries(common: SaeSettings, listed: Sequence[Mapping[str, Any]] | None) -> list[Entry]:
    """Return the autoencoders of a sweep.

    Args:
        common: settings of all, unless an entry has another value.
        listed: settings of each that differ; None: one autoencoder.

    Raises:
        InputError: an entry has an unknown setting, or two have one name.
    """
    if listed is None:
        return [Entry("", common)]
    known = {field.name for field in dataclasses.fields(SaeSettings)}
    found: dict[str, Entry] = {}
    for number, values in enumerate(listed):
        where = f"{LIST}[{number}]"
        if not isinstance(values, Mapping):
            raise InputError(f"{where} must hold settings, such as {{k: 32}}, not {values!r:.60}")
        unknown = sorted(str(name) for name in values if name not in known | {NAME})
        if unknown:
            raise InputError(f"{where}: unknown settings: {', '.join(unknown)}")
        changed = {name: value for name, value in values.items() if name != NAME}
        try:
            settings = dataclasses.replace(common, **changed)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        name = values.get(NAME) or "_".join(f"{key}={value}" for key, value in changed.items())
        name = re.sub(r"[^A-Za-z0-9_.=-]", "-", str(name)) or f"sae_{number}"
        if not _NAME.fullmatch(name):
            raise InputError(f"{where}: {name!r} cannot be the name of a folder")
        if name in found:
            raise InputError(f"{where} has the name of another autoencoder, {name!r}; add a name")
        found[name] = Entry(name, settings)
    if not found:
        raise InputError(f"{LIST} is empty")
    return list(found.values())


def read_sweep(path: Path) -> Sequence[Mapping[str, Any]] | None:
    """Return the list `saes` of a settings file, or None if it has none.

    Raises:
        InputError: it is no list, or the file cannot be read.
    """
    content = read_yaml(path)
    listed = content.get(LIST) if isinstance(content, Mapping) else None
    if listed is not None and not isinstance(listed, list):
        raise InputError(f"{path}: {LIST} must be a list")
    return listed
