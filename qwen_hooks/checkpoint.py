"""Hugging Face checkpoints: find, check, load and save.

`find_checkpoint` returns a local folder for a path or hub id. `Checkpoint.open` reads only the
configuration and the tensors' headers, and refuses tensors that do not fit. `load_params` then
reads the weights tensor by tensor to the device, in the dtype of the computation. Peak host memory
is the parameters (if the device is the host) plus the largest tensor.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from qwen_hooks.config import QwenConfig, token_ids
from qwen_hooks.config_fields import check_types
from qwen_hooks.errors import ModelError
from qwen_hooks.model import Params
from qwen_hooks.parameters import (
    EMBEDDING,
    HEAD,
    STACKED,
    ExpectedTensor,
    ParamPath,
    expected_tensors,
    is_ignored,
)
from qwen_hooks.safetensors_file import (
    DTYPES,
    StoredTensor,
    WeightsFile,
    read_header,
    read_tensor,
    same_values,
)
from qwen_hooks.sharding import Layout

log = logging.getLogger(__name__)

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
DIGESTED = 1 << 20
"""Bytes at each end of a weights file that its digest covers."""


def find_checkpoint(model_path: str, revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint; download a hub id first, unless it is cached.

    Args:
        model_path: a local folder, or a hub id such as `Qwen/Qwen2.5-0.5B`.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: there is neither such a folder nor a hub repository that can be downloaded.
    """
    try:
        folder = Path(model_path).expanduser()
        folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long; ~ of an unknown user
        raise ModelError(f"{model_path} cannot be a folder: {error}") from None
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"{model_path} is a local folder, which has no revision {revision!r}")
        return folder
    if folder.exists():
        raise ModelError(f"{model_path} is a file; a checkpoint is a folder with config.json")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    no_folder = f"there is no folder {model_path}"
    if model_path.startswith((".", "/", "~")) or model_path.count("/") != 1:
        raise ModelError(f"{no_folder}, and a hub id has the form owner/name")
    try:
        return Path(snapshot_download(model_path, revision=revision, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise ModelError(f"{no_folder}, and it is not a valid hub id: {error}") from None
    except (OSError, RuntimeError, ValueError) as error:  # what the hub client raises
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelError(f"{no_folder}, and downloading it from the hub failed: {reason}") from None


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Checkpoint:
    """A checkpoint whose headers fit its configuration.

    Attributes:
        folder: local folder of its files; the weights may be elsewhere.
        config: its configuration.
        tensors: file and offsets of each tensor, by Hugging Face name.
        stop_token_ids: tokens that end a generation: those of `generation_config.json`, else
            those of `config.json`.
    """

    folder: Path
    config: QwenConfig
    tensors: dict[str, StoredTensor]
    stop_token_ids: tuple[int, ...]

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Checkpoint({str(self.folder)!r}: {config.num_hidden_layers} layers of width"
            f" {config.hidden_size}, vocabulary {config.vocab_size}, {len(self.tensors)} tensors)"
        )

    @classmethod
    def open(
        cls, folder: str | Path, weights: Mapping[str, WeightsFile] | None = None
    ) -> "Checkpoint":
        """Read configuration and headers, and of weights only a head and embedding that are tied.

        Args:
            folder: a local folder.
            weights: its safetensors files by name, if they are elsewhere.

        Raises:
            ModelError: the weights do not fit; the message lists every missing, unexpected,
                misshapen or unreadable tensor.
        """
        folder = Path(folder)
        _refuse_devices(folder)
        _warn_of_adapter(folder)
        config = QwenConfig.from_pretrained(folder)
        if weights is None:
            weights = {path.name: path for path in folder.glob("*.safetensors")}
        tensors = _read_headers(folder, weights)
        config = _check_tensors(folder, config, tensors)
        stop_token_ids = _read_stop_tokens(folder, config)
        return cls(folder=folder, config=config, tensors=tensors, stop_token_ids=stop_token_ids)

    def weights_digest(self) -> str:
        """Return the sha256 over names, sizes, headers and first and last MiB of each weights file.

        It detects a changed checkpoint without reading all weights, unless somebody changes only
        the middle of a file.
        """
        digest = hashlib.sha256()
        files = {tensor.file.name: tensor.file for tensor in self.tensors.values()}
        for _, file in sorted(files.items()):
            size = file.stat().st_size
            digest.update(json.dumps([file.name, size]).encode())
            with file.open("rb") as stream:
                header = 8 + int.from_bytes(stream.read(8), "little")
                stream.seek(0)
                digest.update(stream.read(header + DIGESTED))
                stream.seek(max(stream.tell(), size - DIGESTED))
                digest.update(stream.read())
        return digest.hexdigest()


def _read_stop_tokens(folder: Path, config: QwenConfig) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    if not path.exists():
        return config.eos_token_ids
    try:
        generation = json.loads(path.read_text(encoding="utf-8"))
        stop_tokens = generation.get("eos_token_id")
        check_types({"eos_token_id": stop_tokens}, {"eos_token_id": "ids?"})
        return token_ids(stop_tokens) or config.eos_token_ids
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None


def _read_headers(folder: Path, weights: Mapping[str, WeightsFile]) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    if SINGLE_FILE in weights:
        return read_header(weights[SINGLE_FILE])
    if not index.exists():
        found = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".gguf"))
        hint = f" ({', '.join(found)} cannot be read: save it as safetensors)" if found else ""
        raise ModelError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: {error!r}") from None
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        if Path(name).name != name:
            raise ModelError(f"{index} names a file outside its folder: {name!r}")
        if name not in weights:
            raise ModelError(f"{index} names {name}, which is missing")
        for tensor_name, tensor in read_header(weights[name]).items():
            if tensor_name in tensors:
                raise ModelError(f"{folder}: {tensor_name} is in more than one file")
            tensors[tensor_name] = tensor
    return tensors


def _refuse_devices(folder: Path) -> None:
    """Refuse files in a checkpoint's folder that could block or never end.

    Raises:
        ModelError: a file is a FIFO, a socket or a device, or a link to one.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{path} is not a regular file; remove it from the checkpoint")


def _warn_of_adapter(folder: Path) -> None:
    """Warn that an adapter is not applied, as transformers would do with peft.

    Raises:
        ModelError: there is only an adapter and no model.
    """
    path = folder / ADAPTER
    if not path.exists():
        return
    advice = "merge it into the model's weights (peft's merge_and_unload) and save that"
    if not (folder / "config.json").exists():
        raise ModelError(f"{path} belongs to an adapter, and the folder has no model; {advice}")
    log.warning("%s: the adapter beside the model is NOT applied; to have it, %s", path, advice)


def _check_tensors(folder: Path, config: QwenConfig, found: dict[str, StoredTensor]) -> QwenConfig:
    """Return the configuration for these tensors: tied only if their values are equal.

    transformers 5 does the same: a tied checkpoint may hold head or embedding or both, and is
    not tied if it holds both with different values.

    Raises:
        ModelError: the weights do not fit; the message lists every wrong tensor.
    """
    if config.tie_word_embeddings and HEAD in found:
        found.setdefault(EMBEDDING, found[HEAD])
        untied = dataclasses.replace(config, tie_word_embeddings=False)
        _refuse_faults(folder, untied, found)
        if same_values(found[HEAD], found[EMBEDDING]):
            return config
        log.warning(
            "%s: config.json ties the head to the embedding, but %s has other values: it is used",
            folder,
            HEAD,
        )
        return untied
    _refuse_faults(folder, config, found)
    return config


def _refuse_faults(folder: Path, config: QwenConfig, found: dict[str, StoredTensor]) -> None:
    expected = expected_tensors(config)
    faults = [f"missing {name}" for name in expected if name not in found]
    for name, tensor in found.items():
        if name not in expected:
            if not is_ignored(name):
                faults.append(f"unexpected {name}")
        elif tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, config.json asks for {list(expected[name].shape)}"
            faults.append(f"misshapen {name}: {shapes}")
        elif tensor.dtype not in DTYPES:
            faults.append(f"{name} is stored as {tensor.dtype}; {', '.join(DTYPES)} can be read")
    if faults:
        raise ModelError(f"{folder}: the weights do not fit config.json:\n  " + "\n  ".join(faults))


def load_params(
    checkpoint: Checkpoint,
    dtype: DTypeLike = jnp.float32,
    layout: Layout | None = None,
    *,
    scan_layers: bool = False,
) -> Params:
    """Return the full `{'params': ...}` for `model.apply`, in `dtype`.

    Args:
        checkpoint: checkpoint to read.
        dtype: dtype of the parameters; those of the files may differ.
        layout: layout of the parameters on a mesh; each process then reads only the parts of a
            tensor that its devices hold. None: the default device.
        scan_layers: whether to stack the blocks' parameters, for a model with `scan_layers`. The
            host's memory must then hold the part of the largest stack that its devices hold.
    """
    config = checkpoint.config
    sources: dict[ParamPath, list[tuple[StoredTensor, ExpectedTensor]]] = {}
    for name, tensor in expected_tensors(config).items():
        path = tensor.spec.path() if scan_layers else tensor.path
        sources.setdefault(path, []).append((checkpoint.tensors[name], tensor))

    params: dict[str, Any] = {}
    for path, tensors in sources.items():
        part = _TensorReader(tensors, jnp.dtype(dtype), config, layout, path[0] == STACKED)
        if layout is None:
            array = jax.device_put(part.read((slice(None),) * len(part.shape)))
        else:
            sharding = layout.param_sharding(path)
            array = jax.make_array_from_callback(part.shape, sharding, part.read)  # pyright: ignore
        branch = params
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        # Waiting frees the host's copy before the next tensor is read.
        branch[path[-1]] = jax.block_until_ready(array)
    return {"params": params}


class _TensorReader:
    """Reads parts of a parameter, from one tensor, or from the stacked tensors of all blocks."""

    def __init__(
        self,
        tensors: list[tuple[StoredTensor, ExpectedTensor]],
        dtype: np.dtype,
        config: QwenConfig,
        layout: Layout | None,
        stacked: bool,
    ):
        expected = tensors[0][1]
        self._stored = [stored for stored, _ in tensors]
        self._transposed = expected.spec.transposed
        self._dtype = dtype
        self._head_dim = config.head_dim
        self._stacked = stacked
        self._repeats = layout.kv_repeats if layout and expected.spec.has_kv_heads else 1
        shape = expected.spec.sizes(config)
        shape = (*shape[:-1], shape[-1] * self._repeats)
        self.shape = (len(tensors), *shape) if stacked else shape
        self._parts: dict[tuple, np.ndarray] = {}

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return a rectangular part; each distinct part is read once."""
        key = tuple(part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True))
        if key not in self._parts:
            if not self._stacked:
                self._parts[key] = self._read_one(self._stored[0], index)
            else:
                layers, index = self._stored[index[0]], index[1:]
                part = np.empty((len(layers), *(b - a for a, b in key[1:])), self._dtype)
                for i, stored in enumerate(layers):
                    part[i] = self._read_one(stored, index)
                self._parts[key] = part
        return self._parts[key]

    def _read_one(self, stored: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
        if self._repeats > 1:
            return _read_repeated_heads(
                stored, self._dtype, self._transposed, index, self._head_dim, self._repeats
            )
        return read_tensor(stored, self._dtype, transposed=self._transposed, index=index)


def _read_repeated_heads(
    stored: StoredTensor,
    dtype: np.dtype,
    transposed: bool,
    index: tuple[slice, ...],
    head_dim: int,
    repeats: int,
) -> np.ndarray:
    """Return part of a tensor with repeated heads (last axis, in blocks of `head_dim`)."""
    columns = stored.shape[0] * repeats  # the stored tensor has its outputs first
    wanted = np.arange(columns)[index[-1]]
    source = wanted // (head_dim * repeats) * head_dim + wanted % head_dim
    first, last = int(source.min()), int(source.max()) + 1
    span = (*index[:-1], slice(first, last))
    return read_tensor(stored, dtype, transposed=transposed, index=span)[..., source - first]


def save_pretrained(
    folder: str | Path, config: QwenConfig, params: Params, dtype: DTypeLike | None = None
) -> None:
    """Write `config.json` and `model.safetensors` in Hugging Face's form.

    Args:
        folder: folder to write; made if it does not exist.
        config: configuration of the model.
        params: the full `{'params': ...}`.
        dtype: dtype to store; None: that of each parameter.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in expected_tensors(config).items():
        scanned = STACKED in params["params"] and tensor.spec.of_block
        leaf = params["params"]
        for key in tensor.spec.path() if scanned else tensor.path:
            leaf = leaf[key]
        if scanned:
            leaf = leaf[int(tensor.path[0].removeprefix("layers_"))]
        array = np.asarray(leaf if dtype is None else jnp.asarray(leaf, dtype))
        tensors[name] = np.ascontiguousarray(array.T if tensor.spec.transposed else array)
    stored = tensors[EMBEDDING].dtype.name
    text = json.dumps(config.to_dict() | {"torch_dtype": stored, "dtype": stored}, indent=2)
    (folder / "config.json").write_text(text + os.linesep, encoding="utf-8")
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
