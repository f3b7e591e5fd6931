"""Settings of what the model runs on: tasks or a data set, how much of it, and how it is cut.

Frozen dataclass; part of every command's settings.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import field
from typing import ClassVar, Literal

from extraction.setting_names import setting
from inference.errors import InputError

OF_HUB = ("dataset_config", "dataset_revision")
OF_HUGGING_FACE = (*OF_HUB, "dataset_split")
OF_TEXT_FILES = ("sample_by",)
OF_DOCUMENTS = (
    *OF_HUGGING_FACE, *OF_TEXT_FILES, "text_field", "id_field", "context_length", "truncate",
    "separator",
)  # fmt: skip
"""Settings that one kind of input alone has a use for."""


def doc(text: str) -> dict[str, str]:
    """Of a flag, for the metadata of its field."""
    return {"help": text}


def is_token_id(text: str) -> bool:
    """Says whether a text is a number that fits into an int32, as token ids must."""
    return text.isdecimal() and len(text) <= 10 and int(text) < 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Where the samples come from.

    Raises:
        InputError: not one of tasks file and data set is given, or a value is out of range.
    """

    tasks_file: str | None = field(
        default=None,
        metadata=doc(
            "ARC file or folder, JSON list or JSON Lines of prompts, chats, token ids; or gs://..."
        ),
    )
    dataset: str | None = field(
        default=None,
        metadata=doc(
            "In place of --tasks_file, documents: a .txt, .jsonl, .parquet, .npy or .npz file, a"
            " folder of such files, either also as gs://..., a saved Hugging Face dataset, or the"
            " hub name of one. See docs/datasets.md."
        ),
    )
    dataset_config: str | None = field(
        default=None, metadata=doc("Configuration of a Hugging Face dataset.")
    )
    dataset_split: str = field(default="train", metadata=doc("Split of a Hugging Face dataset."))
    dataset_revision: str | None = field(
        default=None, metadata=doc("Branch, tag or commit of a hub dataset.")
    )
    text_field: str = field(
        default="text",
        metadata=doc(
            "Field of a record that holds its text, its messages or its token ids; where there is"
            " none of the name, input_ids and attention_mask are read."
        ),
    )
    id_field: str | None = field(
        default=None,
        metadata=doc("Field that names a document. Default: file name and number."),
    )
    sample_by: Literal["line", "paragraph", "document"] = field(
        default="line", metadata=doc("What a document is in a .txt file.")
    )
    sample_limit: int | None = field(
        default=None, metadata=doc("Tasks or documents to run, at most; the first ones.")
    )
    random_sample: int | None = field(
        default=None,
        metadata=doc("Choose so many of all at random, by --random_seed; a stream is read whole."),
    )
    context_length: int | None = field(
        default=None,
        metadata=doc(
            "Documents are cut into pieces of so many tokens; sample_idx counts them. Default: the"
            " model's context."
        ),
    )
    truncate: bool = field(
        default=False, metadata=doc("Run the first piece of each document only.")
    )
    add_special_tokens: bool = field(
        default=True,
        metadata=doc("Let the tokenizer put its special tokens around a text."),
    )
    separator: str = field(
        default="none",
        metadata=doc("Token put behind each document: none, eos, or a token id."),
    )

    may_be_empty: ClassVar[Collection[str]] = ()
    """Flags for which an empty text has a meaning."""

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            texts = value if isinstance(value, list) else [value]
            blank = any(isinstance(text, str) and not text.strip() for text in texts)
            if blank and entry.name not in self.may_be_empty:
                raise InputError(f"{setting(entry.name)} must not be empty")
        if (self.tasks_file is None) == (self.dataset is None):
            given = "both were given" if self.dataset is not None else "neither was given"
            raise InputError(
                f"one of {setting('tasks_file')} and {setting('dataset')} is needed; {given}"
            )
        for name in ("sample_limit", "random_sample", "context_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{setting(name)} must be at least 1, not {value}")
        if self.separator not in ("none", "eos") and not is_token_id(self.separator):
            raise InputError(
                f"{setting('separator')} is none, eos or the number of a token, not"
                f" {self.separator!r}"
            )
        if self.dataset is None:
            self.refuse_changed(OF_DOCUMENTS, f"is for documents, and needs {setting('dataset')}")

    def refuse_changed(self, names: Sequence[str], reason: str) -> None:
        """Makes sure that nothing is asked for that would be ignored.

        Args:
            names: of settings that must be as they are by default.
            reason: what is said of the first that is not, behind its flag.

        Raises:
            InputError: one is not.
        """
        default = {entry.name: entry.default for entry in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != default[name]:
                raise InputError(f"{setting(name)} {reason}")

    @property
    def inputs(self) -> str:
        """The tasks file or the data set."""
        return self.tasks_file or self.dataset or ""
