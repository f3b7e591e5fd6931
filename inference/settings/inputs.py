"""Settings of the inputs: tasks or a data set, the number of inputs, and how they are cut."""

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
"""Settings that only one kind of input uses."""


def is_token_id(text: str) -> bool:
    """Return whether a text is a number that fits into an int32, as token ids must."""
    return text.isdecimal() and len(text) <= 10 and int(text) < 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSettings(Settings):
    """Settings of the inputs.

    Raises:
        InputError: a value is out of range, or a setting for documents is given without a data set.
    """

    group = "what the model runs on"

    tasks_file: str | None = flag(
        "File of tasks, or folder of ARC files, local or at gs://...: ARC JSON, a JSON list or JSON"
        " Lines of prompts, chats or token ids.",
        decides="resolved",
        default=None,
        example="arc_tasks.json",
    )
    dataset: str | None = flag(
        "Documents to run, instead of --tasks_file: a .txt, .jsonl, .parquet, .npy or .npz file, a"
        " folder of such files, local or at gs://..., or a Hugging Face dataset, by its hub name or"
        " its saved folder. See docs/datasets.md.",
        decides="resolved",
        default=None,
        example="corpus.txt",
    )
    dataset_config: str | None = flag(
        "Configuration of the hub dataset. Default: its default or only one.",
        decides="resolved",
        default=None,
        example="en",
    )
    dataset_split: str = flag(
        "Split of the Hugging Face dataset.", decides="resolved", default="train"
    )
    dataset_revision: str | None = flag(
        "Branch, tag or commit of the hub dataset. Default: its main branch.",
        decides="resolved",
        default=None,
        example="main",
    )
    text_field: str = flag(
        "Field of a record with its text, its messages or its token ids. In a record without this"
        " field, input_ids and attention_mask are read.",
        decides="resolved",
        default="text",
    )
    id_field: str | None = flag(
        "Field of a record with its id. Default: the id is the file name (or split) and the number"
        " of the record.",
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
        "Run N tasks or documents chosen at random with --random_seed. A hub dataset is read to its"
        " end for this.",
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
                f"{setting('separator')} must be none, eos or a token id, not {self.separator!r}"
            )
        if self.dataset is None:
            self.refuse_changed(OF_DOCUMENTS, f"is for documents, and needs {setting('dataset')}")

    def refuse_changed(self, names: Sequence[str], reason: str) -> None:
        """Refuse settings that would be ignored.

        Args:
            names: names of settings that must have their default value.
            reason: text after the setting's name in the message.

        Raises:
            InputError: a setting has another value.
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
    """Settings of the prompts of ARC tasks.

    Raises:
        InputError: there is no such grid encoder, or a number is out of range.
    """

    group = "ARC tasks"

    predictions_per_task: int = flag(
        "Number of samples for each test input. The first has the original grids, the others"
        " augmented ones.",
        decides="resolved",
        default=1,
        least=1,
    )
    grid_encoder: str = flag(
        f"How a grid is written in a prompt: {', '.join(GRID_ENCODERS)}.",
        decides="resolved",
        default="digits",
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
                f"{setting('grid_encoder', self.grid_encoder)} is not known; choose one of"
                f" {', '.join(GRID_ENCODERS)}"
            )
