"""Checkpoints in a bucket: small files are copied here, weights are read in parts."""

import fnmatch
import hashlib
import os
import tempfile
from pathlib import Path

from extraction.storage import open_storage
from inference.input_files import StoredFile
from qwen_hooks import Checkpoint
from qwen_hooks.checkpoint import HUB_FILES
from qwen_hooks.errors import ModelError

CACHE = "~/.cache/qwen_activation_extraction/checkpoints"
WEIGHTS = "*.safetensors"


def open_bucket_checkpoint(address: str) -> Checkpoint:
    """The checkpoint at `gs://bucket/prefix`.

    Of its weights each process reads the headers now, and later what its devices hold.

    Raises:
        ModelError: nothing lies there, or no checkpoint that this package can compute.
        StoreError: the bucket cannot be used.
    """
    storage = open_storage(address.rstrip("/"))
    infos = storage.infos()
    wanted = [name for name in infos if any(fnmatch.fnmatch(name, p) for p in HUB_FILES)]
    if not wanted:
        raise ModelError(f"{storage.address} holds no checkpoint")
    folder = Path(CACHE).expanduser() / hashlib.sha256(storage.address.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: StoredFile(storage, n, infos[n]) for n in wanted if fnmatch.fnmatch(n, WEIGHTS)}
    small = [name for name in wanted if name not in weights]
    for path in folder.iterdir():  # of an earlier version of the checkpoint
        if path.name not in small and not path.name.startswith("."):
            path.unlink(missing_ok=True)
    for name in small:
        _write(folder / name, storage.get(name))
    return Checkpoint.open(folder, weights)


def _write(path: Path, data: bytes) -> None:
    """Other processes of this machine may do the same at the same time."""
    if path.exists() and path.read_bytes() == data:
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    os.replace(temporary, path)
