"""Data sets: documents from text, JSON Lines, Parquet, token arrays and Hugging Face.

    .txt          each line, each paragraph or the whole file is a document (`--sample_by`)
    .jsonl        each line is an object
    .parquet      each row is a record
    .npy          token ids, `[N, S]`, or `[tokens]` of one document
    .npz          `input_ids` and, with padding, `attention_mask`
    a folder      such files, by name; or what `datasets.Dataset.save_to_disk` wrote
    else          the name of a Hugging Face dataset, which is streamed

The field `--text_field` of a record is a text, a chat (a list of messages; the record's `tools`
belong to it) or token ids. Documents are numbered before some are chosen, so a document's name
tells its place in the data set.
"""

import dataclasses
import importlib.util
import io
import itertools
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from extraction.errors import first_line
from extraction.progress import ProgressLine, counted
from extraction.setting_names import setting
from inference.errors import InputError
from inference.inputs.files import InputFile, is_in_bucket, read_input_files
from inference.inputs.prompt_forms import read_prompt, read_text, read_tools, without_arrow_nulls
from inference.inputs.tasks import PromptTask, Task, check_task_id, parse_json, read_tasks
from inference.settings.commands import ExtractionSettings
from inference.settings.inputs import OF_HUB, OF_HUGGING_FACE, OF_TEXT_FILES, InputSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
SettingsT = TypeVar("SettingsT", bound=InputSettings)
ExtractionT = TypeVar("ExtractionT", bound=ExtractionSettings)
Record = Mapping[str, Any]

HUB_TIMEOUT = 20.0
"""Most seconds to wait for a data set's commit. Reading has the timeouts of the hub's client."""

SAVED_DATASET = ("dataset_dict.json", "state.json")
"""Files by which a folder of `save_to_disk` is recognised; it has one of them."""


def read_inputs(settings: InputSettings, seed: int) -> list[Task]:
    """Return the tasks or documents of a run, in their order.

    Args:
        settings: settings of the inputs.
        seed: seed of `random_sample`.

    Raises:
        InputError: there is no input, or an input is wrong; the message names the place.
        StoreError: the bucket of the inputs cannot be used.
    """
    tasks: Iterable[Task]
    if settings.tasks_file is not None:
        tasks = read_tasks(settings.tasks_file)
    else:
        tasks = read_documents(settings)
    with ProgressLine() as progress:
        tasks = counted(tasks, "inputs read", progress)
        if settings.random_sample is not None:
            tasks = random_sample(tasks, settings.random_sample, seed)
        chosen = list(itertools.islice(tasks, settings.sample_limit))
    if not chosen:
        raise InputError(f"{settings.inputs} holds no document")
    return chosen


def read_tasks_of(settings: ExtractionT) -> tuple[ExtractionT, list[Task]]:
    """Return a run's settings, with the commit of a hub dataset, and its tasks or documents.

    Args:
        settings: settings of the run.

    Raises:
        InputError: see `read_inputs`.
        StoreError: see `read_inputs`.
    """
    settings = with_commit(settings)
    return settings, read_inputs(settings, settings.random_seed)


def with_commit(settings: SettingsT) -> SettingsT:
    """Return the settings with the commit of a hub dataset instead of its branch or tag.

    So the run's metadata name the data that was read. If the hub does not answer, the settings are
    returned unchanged.
    """
    name = settings.dataset
    if name is None or not _is_hugging_face(name) or Path(name).expanduser().is_dir():
        return settings
    if importlib.util.find_spec("datasets") is None:  # which is told when it is read
        return settings
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(name, revision=settings.dataset_revision, timeout=HUB_TIMEOUT)
    except Exception as error:  # every kind; what reads the dataset says what is wrong
        log.warning("the commit of %s is not known: %s", name, first_line(error))
        return settings
    log.info("%s is read at commit %s", name, found.sha)
    return dataclasses.replace(settings, dataset_revision=found.sha or settings.dataset_revision)


def random_sample(items: Iterable[T], count: int, seed: int) -> list[T]:
    """Return `count` items, chosen uniformly, in their order (Vitter's algorithm R)."""
    random = np.random.default_rng(seed)
    kept: list[tuple[int, T]] = []
    for number, item in enumerate(items):
        if number < count:
            kept.append((number, item))
        elif (place := random.integers(0, number + 1)) < count:
            kept[place] = (number, item)
    return [item for _, item in sorted(kept, key=lambda entry: entry[0])]


def read_documents(settings: InputSettings) -> Iterator[PromptTask]:
    """Yield all documents of a data set.

    Raises:
        InputError: there is no such data set, or a document is wrong; the message names the place.
        StoreError: the bucket of the data set cannot be used.
    """
    address, names = settings.dataset or "", set[str]()  # ids of `id_field`
    records = _hugging_face if _is_hugging_face(address) else _from_files
    for name, record in records(settings):
        document = _document(name, record, settings)
        if settings.id_field is not None:
            if document.task_id in names:
                raise InputError(f"{address}: two documents are named {document.task_id!r}")
            names.add(document.task_id)
        yield document


def read_fields(settings: InputSettings) -> set[str]:
    """Return the fields of a record that are read."""
    own = {settings.text_field} | ({settings.id_field} if settings.id_field else set())
    return own | {"input_ids", "attention_mask", "entity", "tools"}


def _is_hugging_face(address: str) -> bool:
    if is_in_bucket(address):
        return False
    try:
        path = Path(address).expanduser()
        return not path.exists() or any((path / name).exists() for name in SAVED_DATASET)
    except (OSError, RuntimeError):  # a name that is too long; ~ of a user that there is not
        raise InputError(
            f"{setting('dataset', address[:80])}: there is no such file or folder"
        ) from None


def _from_files(settings: InputSettings) -> Iterator[tuple[str, Record]]:
    settings.refuse_changed(OF_HUGGING_FACE, "is for Hugging Face datasets, not for files")
    for file in read_input_files("dataset", settings.dataset or "", tuple(READERS)):
        read = READERS.get(file.suffix)
        if read is None:
            raise InputError(f"{file}: a data set's files are {', '.join(READERS)}")
        if file.suffix != ".txt":
            settings.refuse_changed(OF_TEXT_FILES, "is for .txt files")
        for number, record in enumerate(read(file, settings)):
            yield f"{file.name}/{number}", record


def _hugging_face(settings: InputSettings) -> Iterator[tuple[str, Record]]:
    name, split = settings.dataset or "", settings.dataset_split
    settings.refuse_changed(OF_TEXT_FILES, "is for .txt files")
    is_saved = Path(name).expanduser().is_dir()
    if is_saved:
        settings.refuse_changed(OF_HUB, "is for datasets of the hub, not for a saved one")
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{setting('dataset', name)}: there is no such file; for a Hugging Face dataset install"
            " the extra `datasets`: pip install 'qwen-activation-extraction[datasets]'"
        ) from None
    try:
        if is_saved:
            found = datasets.load_from_disk(str(Path(name).expanduser()))
            records = found
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    splits = ", ".join(map(str, found))
                    raise InputError(
                        f"{setting('dataset', name)}: there is no split {split!r}; choose one of"
                        f" {splits} with {setting('dataset_split')}"
                    )
                records = found[split]
        else:
            records = datasets.load_dataset(
                name,
                settings.dataset_config,
                split=split,
                revision=settings.dataset_revision,
                streaming=True,
            )
        stream = enumerate(records)
        while (found := next(stream, None)) is not None:
            number, record = found
            yield f"{split}/{number}", without_arrow_nulls(record)
    except InputError:
        raise
    except Exception as error:  # every kind, from the network to a missing split
        raise InputError(
            f"{setting('dataset', name)}: {type(error).__name__}: {first_line(error)}"
        ) from None


def _text_file(file: InputFile, settings: InputSettings) -> Iterator[Record]:
    text = _decode(file)
    if settings.sample_by == "document":
        parts = [text]
    elif settings.sample_by == "paragraph":
        parts = text.replace("\r\n", "\n").split("\n\n")
    else:
        parts = (line.removesuffix("\r") for line in text.split("\n"))
    return ({settings.text_field: part} for part in parts if part.strip())


def _json_lines(file: InputFile, settings: InputSettings) -> Iterator[Record]:
    for number, line in enumerate(_decode(file).split("\n"), start=1):
        if line.strip():
            record = parse_json(file, line, line_number=number)
            if not isinstance(record, dict):
                raise InputError(f"{file}, line {number}: a record is an object, not {line:.40}")
            yield record


def _parquet(file: InputFile, settings: InputSettings) -> Iterator[Record]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            f"{file}: Parquet needs the extra `datasets`: pip install"
            " 'qwen-activation-extraction[datasets]'"
        ) from None
    wanted = read_fields(settings)
    try:
        table = parquet.ParquetFile(io.BytesIO(file.data))
        columns = [name for name in table.schema_arrow.names if name in wanted]
        for batch in table.iter_batches(columns=columns):
            yield from map(without_arrow_nulls, batch.to_pylist())
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{file} is no Parquet file that can be read: {error}") from None


def _token_array(file: InputFile, settings: InputSettings) -> Iterator[Record]:
    try:
        loaded = np.load(io.BytesIO(file.data), allow_pickle=False)
        arrays = {"input_ids": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is no array that can be read: {error}") from None
    ids, mask = arrays.get("input_ids"), arrays.get("attention_mask")
    if ids is None or ids.ndim not in (1, 2) or ids.dtype.kind not in "iu":
        raise InputError(
            f"{file} must hold whole numbers, [documents, tokens] or [tokens]"
            f"{' under the name input_ids' if file.suffix == '.npz' else ''}"
        )
    if mask is not None and mask.shape != ids.shape:
        raise InputError(f"{file}: attention_mask is {mask.shape}, input_ids {ids.shape}")
    for number, row in enumerate(np.atleast_2d(ids)):
        yield {"input_ids": row} | (
            {} if mask is None else {"attention_mask": np.atleast_2d(mask)[number]}
        )


READERS: dict[str, Callable[[InputFile, InputSettings], Iterator[Record]]] = {
    ".txt": _text_file,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".npy": _token_array,
    ".npz": _token_array,
}
"""Function that reads the records of a file, by extension."""


def _decode(file: InputFile) -> str:
    try:
        return file.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 (byte {error.start})") from None


def _document(name: str, record: Record, settings: InputSettings) -> PromptTask:
    task_id = name
    if settings.id_field is not None:
        found = record.get(settings.id_field)
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise InputError(
                f"{name}: {setting('id_field', settings.id_field)} is {found!r:.40}, no name"
            )
        task_id = str(found)
    check_task_id(settings.dataset, task_id)
    entity = record.get("entity")
    extra = {"entity": read_text(f"{name}: entity", entity)} if isinstance(entity, str) else {}
    form = settings.text_field if settings.text_field in record else "input_ids"
    where, content = f"{name}: {setting('text_field', settings.text_field)}", record.get(form)
    if form not in record:
        raise InputError(f"{where}: the record has {', '.join(record) or 'no such field'}")
    if content is None:  # no text, as an empty one
        content = ""
    prompt = read_prompt(where, content)
    if "messages" in prompt:
        prompt["tools"] = read_tools(f"{name}: tools", record.get("tools"))
    mask = record.get("attention_mask")
    if "token_ids" in prompt and mask is not None:
        prompt["token_ids"] = _unmasked(name, prompt["token_ids"], mask)
    return PromptTask(task_id=task_id, extra=extra, **prompt)


def _unmasked(name: str, token_ids: Sequence[int], mask: Any) -> tuple[int, ...]:
    """Return the token ids without those that the attention mask leaves out."""
    try:
        array = np.asarray(mask if len(mask) else np.zeros(0, bool))
    except (ValueError, TypeError):  # lists of different lengths
        array = np.empty((0, 0))
    if array.shape != (len(token_ids),) or array.dtype.kind not in "iub":
        raise InputError(
            f"{name}: attention_mask must be {len(token_ids)} whole numbers, one for each token"
        )
    return tuple(token for token, is_token in zip(token_ids, array, strict=True) if is_token)
