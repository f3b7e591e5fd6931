"""What a run is and how long it took: model, data, settings, versions, self-check, times."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

from extraction.report.contents import RunContents
from extraction.report.markup import Html, count, element, foreign, number
from extraction.report.tables import details, pairs
from extraction.report.warnings import self_check_text
from extraction.run.changes import changes

LONGEST_VALUE = 400
"""Most characters of a setting's value."""

MODEL_FIELDS = {
    "model_type": "family",
    "num_hidden_layers": "blocks",
    "hidden_size": "residual width",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "key and value heads",
    "vocab_size": "vocabulary",
}

DATASET_FIELDS = (
    *("dataset", "dataset_config", "dataset_split", "dataset_revision", "text_field"),
    *("context_length", "add_special_tokens"),
)
TASK_FIELDS = ("tasks_file", "prompt_style", "predictions_per_task")
DATA_FIELDS = ("sample_limit", "random_sample", "positions", "max_new_tokens")
"""Settings shown of a data set, of tasks, and of both."""


def what_it_is(run: RunContents) -> list[Html]:
    """Return the section about the run."""
    identity, record = run.identity, run.identity.run
    config = run.config
    model = [("name", foreign(identity.model_name or "–"))]
    model += [
        (title, foreign(count(config[key])) if type(config[key]) is int else _value(config[key]))
        for key, title in MODEL_FIELDS.items()
        if key in config
    ]
    model += _some(
        record,
        {"compute_dtype": "compute dtype", "weights_sha256": "sha256 of the weights"},
    )
    names = (*(DATASET_FIELDS if _is_set(run, "dataset") else TASK_FIELDS), *DATA_FIELDS)
    data = [(name, _value(run.settings[name])) for name in names if _is_set(run, name)]
    if run.outputs is not None:
        told = run.outputs
        data += [
            ("samples", count(told.samples)),
            ("prompt tokens", count(told.prompt_tokens)),
            ("generated tokens", count(told.generated_tokens)),
            ("finish reasons", foreign(_counted(told.finish_reasons))),
        ]
    about = [
        ("run", foreign(identity.run_id)),
        ("begun", _moment(identity.created_at)),
        *_some(record, {"command": "command", "program_version": "program version"}),
        *_some(record, {"platform": "platform", "mesh": "mesh", "processes": "processes"}),
        *(("changed", foreign(line)) for line in changes(record)),
        *(("self-check", foreign(self_check_text(c))) for c in run.self_checks),
    ]
    versions = record.get("versions")
    blocks = [("Model", model), ("Data", data or [("", "The run does not record its data.")])]
    blocks.append(("Run", about))
    if isinstance(versions, Mapping):
        blocks.append(("Versions", [(str(k), _value(v)) for k, v in versions.items()]))
    shown = [
        element("div", element("h3", title), pairs(title, entries)) for title, entries in blocks
    ]
    content = [element("div", *shown, class_="facts-columns")]
    if run.settings:
        every = [(str(name), _value(value)) for name, value in run.settings.items()]
        content.append(
            details(f"All {len(every)} settings", pairs("Settings of the first attempt", every))
        )
    return content


def _is_set(run: RunContents, name: str) -> bool:
    value = run.settings.get(name)
    return value is not None and value is not False and value != []


def _some(record: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, Html]]:
    return [(title, _value(record[key])) for key, title in names.items() if key in record]


def _value(value: Any) -> Html:
    """Return a value of JSON as a person writes it."""
    if isinstance(value, str):
        return foreign(value, LONGEST_VALUE)
    if isinstance(value, Mapping) and all(isinstance(v, int | str) for v in value.values()):
        return foreign(", ".join(f"{k} {v}" for k, v in value.items()), LONGEST_VALUE)
    if isinstance(value, list) and all(isinstance(v, int | float | str) for v in value):
        return foreign(", ".join(map(str, value)) or "none", LONGEST_VALUE)
    if value is None:
        return foreign("not set")
    return foreign(json.dumps(value, ensure_ascii=False), LONGEST_VALUE)


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {times:,}" for value, times in values.items())


def time_section(run: RunContents) -> list[Html]:
    """Return the section about times."""
    begun, ended = _time(run.identity.created_at), _time(run.totals.last_written_at)
    entries = [
        ("begun", _moment(run.identity.created_at)),
        ("last commit", _moment(run.totals.last_written_at or "–")),
    ]
    if begun and ended and ended > begun:
        seconds = (ended - begun).total_seconds()
        entries += [
            ("time between them", f"{seconds:,.0f} s"),
            ("rows/s per hook point", number(run.totals.n_rows / seconds)),
        ]
        if run.outputs is not None:
            tokens = run.outputs.prompt_tokens + run.outputs.generated_tokens
            entries.append(("tokens/s", number(tokens / seconds)))
    return [
        pairs("Times", entries),
        element(
            "p",
            "The time between them includes loading, compiling, and pauses between attempts.",
            class_="soft small",
        ),
    ]


def _moment(text: str) -> Html:
    """Return a time in UTC; any other text as it is."""
    time = _time(text)
    if time is None:
        return foreign(text)
    return foreign(f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC")


def _time(text: str) -> datetime.datetime | None:
    """Return a time of ISO 8601 with its zone; None if it is none."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None
