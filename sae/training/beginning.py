"""`training.json`: what a training began with, and who trains.

It holds what decides the weights, and what followed from the run's size when the training began:
a run may grow until the training goes on. In a bucket, where no lock can be held, the process that
began last trains; an earlier one finds that out before it publishes, and ends.
"""

import dataclasses
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from extraction.documents import read_json
from extraction.errors import ExistingRunError, StoreError
from extraction.run_layout import METADATA_FILE, RUN_FILE, RUN_FOLDER
from extraction.setting_names import setting
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from extraction.storage.local import LocalStorage
from extraction.writing.disk_retry import patiently
from sae.training.run_settings import TrainSettings

TRAINING_FILE = "training.json"
TRAINS_FILE = f"{RUN_FOLDER}trains.json"

RESUME = "the same command with --resume True goes on"


def recorded(storage: Storage) -> dict[str, Any] | None:
    """Return the content of a storage's `training.json`; None if there is none.

    Raises:
        StoreError: it is damaged.
    """
    if TRAINING_FILE not in storage.names():
        return None
    try:
        found = read_json(get_at_most(storage, TRAINING_FILE))
        parts = [found[name] for name in ("data", "autoencoders")] if type(found) is dict else []
        if not (parts and all(type(part) is dict for part in parts)):
            raise ValueError("it must hold run_id, data and autoencoders")
        if not all(type(one) is dict for one in found["autoencoders"].values()):
            raise ValueError("autoencoders must hold settings")
    except KeyError as error:
        raise StoreError(f"{storage.address}/{TRAINING_FILE} is damaged: no {error}") from None
    except ValueError as error:
        raise StoreError(f"{storage.address}/{TRAINING_FILE} is damaged: {error}") from None
    return found


def refuse_run(storage: Storage) -> None:
    """Raise ExistingRunError if a storage holds a run; a training would mix its files with it."""
    if {RUN_FILE, METADATA_FILE} & {*storage.names(), *storage.names(RUN_FOLDER)}:
        raise ExistingRunError(
            f"{storage.address} holds a run; choose another {setting('output_dir')}"
        )


def as_begun(settings: TrainSettings, began: Mapping[str, Any]) -> TrainSettings:
    """Return settings in which numbers that follow from the run's size are those of the beginning.

    Args:
        settings: of the command.
        began: content of `training.json`.
    """
    names = [name for name in ("train_rows", "read_streams") if getattr(settings, name) is None]
    kept = {name: began["data"].get(name) for name in names}
    if type(kept.get("train_rows")) is int:
        kept["train_rows"] = float(kept["train_rows"])
    return dataclasses.replace(settings, **kept)


def begun(storage: Storage, identity: Mapping[str, Any], *, resume: bool) -> bool:
    """Claim an output for a training; return whether it holds one already, to be continued.

    Raises:
        ExistingRunError: it holds one, and that is not to be continued, or is another.
    """
    text = json.dumps(identity, indent=1, sort_keys=True)
    there = recorded(storage)
    if there is None:
        try:
            patiently(storage.address, lambda: storage.put_new(TRAINING_FILE, text.encode()))
            return False
        except FileExistsError:
            raise ExistingRunError(
                f"another training began in {storage.address} at the same time; choose another"
                f" {setting('output_dir')}"
            ) from None
    if not resume:
        raise ExistingRunError(
            f"{storage.address} holds a training already; go on with it by"
            f" {setting('resume', True)}, or choose another {setting('output_dir')}"
        )
    differing = sorted(_differences(there, json.loads(text), ""))
    if differing:
        raise ExistingRunError(
            f"{storage.address} holds a training with other settings, so it cannot go on with"
            f" these: {'; '.join(differing)}"
        )
    return True


class Turn:
    """A process's turn to train into a bucket; into a folder only one can anyway.

    Args:
        storage: where the training is kept.
    """

    def __init__(self, storage: Storage):
        self._storage = None if isinstance(storage, LocalStorage) else storage
        self._text = json.dumps({"process": secrets.token_hex(16)}).encode()

    def take(self) -> None:
        """Take it from whichever process had it."""
        if self._storage is not None:
            self._storage.replace(TRAINS_FILE, self._text)

    def check(self) -> None:
        """Raise ExistingRunError if another process has taken it since."""
        if self._storage is None:
            return
        try:
            if get_at_most(self._storage, TRAINS_FILE) == self._text:
                return
        except FileNotFoundError:
            raise StoreError(
                f"{self._storage.address}/{TRAINS_FILE} was removed during the training"
            ) from None
        raise ExistingRunError(
            f"another process began to go on with the training in {self._storage.address}, so this"
            " one ends; what it kept there is used"
        )


def _differences(there: Any, here: Any, where: str) -> Iterator[str]:
    """Yield each setting that differs, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in there.keys() | here.keys():
            inner = f"{where}.{name}" if where else name
            yield from _differences(there.get(name), here.get(name), inner)
    elif there != here:
        yield f"{where} {there!r} there, {here!r} here"
