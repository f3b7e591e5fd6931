"""Settings of what the model runs on: tasks or a data set, how much of it, and how it is cut."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from extraction.setting_names import setting
from inference.errors import InputError
from inference.inputs.arc_grids import GRID_ENCODERS
from inference.settings.fields import Settings, flag

OF_HUB = ("dataset_config", "dataset_revision")
OF_HUGGING_FACE = (*OF_HUB, "dataset_split")
OF_TEXT_FILES = ("sample_by",)
OF_DOCUMENTS = (
    *OF_HUGGING_FACE, *OF_TEXT_FILES, "text_field", "id_field", "context_length", "truncate",
    "separator",
)  # fmt: skip
"""Settings that one kind of input alone has a use for."""


def is_token_id(text: str) -> bool:
    """Return whether a text is a number that fits into an int32, as token ids must."""
    return text.isdecimal() and len(text) <= 10 and int(text) < 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSettings(Settings):
    """Where the samples come from.

    Raises:
        InputError: a value is out of range, or of use for documents alone.
    """

    group = "what the model runs on"

    tasks_file: str | None = flag(
        "ARC file or folder, JSON list or JSON Lines of prompts, chats or token ids; also gs://...",
        decides="resolved",
        default=None,
        example="arc_tasks.json",
    )
    dataset: str | None = flag(
        "Documents, instead of --tasks_file: a .txt, .jsonl, .parquet, .npy or .npz file or a"
        " folder of such files, local or at gs://..., a saved Hugging Face dataset, or the hub"
        " name of one. See docs/datasets.md.",
        decides="resolved",
        default=None,
        example="corpus.txt",
    )
    dataset_config: str | None = flag(
        "Configuration of a Hugging Face dataset.",
        decides="resolved",
        default=None,
        example="en",
    )
    dataset_split: str = flag(
        "Split of a Hugging Face dataset.", decides="resolved", default="train"
    )
    dataset_revision: str | None = flag(
        "Branch, tag or commit of a hub dataset.",
        decides="resolved",
        default=None,
        example="main",
    )
    text_field: str = flag(
        "Field of a record that holds its text, its messages or its token ids. A record"
        " without it is read from input_ids and attention_mask.",
        decides="resolved",
        default="text",
    )
    id_field: str | None = flag(
        "Field of a record that holds its id. Default: file name and number of the record.",
        decides="resolved",
        default=None,
        example="id",
    )
    sample_by: Literal["line", "paragraph", "document"] = flag(
        "How a .txt file is divided into documents.", decides="resolved", default="line"
    )
    sample_limit: int | None = flag(
        "Run only the first N tasks or documents.",
        decides="resolved",
        default=None,
        example=1000,
        least=1,
    )
    random_sample: int | None = flag(
        "Run N tasks or documents chosen at random, by --random_seed. A streamed dataset is"
        " read to its end.",
        decides="resolved",
        default=None,
        example=1000,
        least=1,
    )
    context_length: int | None = flag(
        "Cut documents into pieces of this many tokens; sample_idx counts the pieces."
        " Default: the model's context.",
        decides="resolved",
        default=None,
        example=1024,
        least=1,
    )
    truncate: bool = flag(
        "Run only the first piece of each document.", decides="resolved", default=False
    )
    add_special_tokens: bool = flag(
        "Whether the tokenizer adds its special tokens around a text.",
        decides="resolved",
        default=True,
    )
    separator: str = flag(
        "Token appended to each document: none, eos, or a token id.",
        decides="resolved",
        default="none",
    )

    def _check(self) -> None:
        super()._check()
        if self.separator not in ("none", "eos") and not is_token_id(self.separator):
            raise InputError(
                f"{setting('separator')} is none, eos or the number of a token, not"
                f" {self.separator!r}"
            )
        if self.dataset is None:
            self.refuse_changed(OF_DOCUMENTS, f"is for documents, and needs {setting('dataset')}")

    def refuse_changed(self, names: Sequence[str], reason: str) -> None:
        """Refuse settings that would be ignored.

        Args:
            names: settings that must have their default value.
            reason: follows the setting's name in the message.

        Raises:
            InputError: one has another value.
        """
        default = {entry.name: entry.default for entry in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != default[name]:
                raise InputError(f"{setting(name)} {reason}")

    @property
    def inputs(self) -> str:
        """Path or name of the tasks file or the data set."""
        return self.tasks_file or self.dataset or ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArcSettings(Settings):
    """How ARC tasks become prompts.

    Raises:
        InputError: there is no such grid encoder, or a number is out of range.
    """

    group = "ARC tasks"

    predictions_per_task: int = flag(
        "Samples for each test input. The first has the original grids, the others augmented ones.",
        decides="resolved",
        default=1,
        least=1,
    )
    grid_encoder: str = flag(
        f"How a grid is written: {', '.join(GRID_ENCODERS)}.", decides="resolved", default="digits"
    )
    prompt_style: Literal["chat", "plain"] = flag(
        "Whether prompts are rendered by the tokenizer's chat template (chat) or not (plain).",
        decides="resolved",
        default="chat",
    )

    def _check(self) -> None:
        super()._check()
        if self.grid_encoder not in GRID_ENCODERS:
            raise InputError(
                f"{setting('grid_encoder', self.grid_encoder)} is none of"
                f" {', '.join(GRID_ENCODERS)}"
            )
