"""Documents from every kind of source, cut, chosen and named."""

import collections
import copy
import dataclasses
import io
import json
import sys
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from extraction.reading.dataset import ActivationDataset
from inference.errors import InputError
from inference.inputs.datasets import random_sample, read_documents, read_inputs, with_commit
from inference.inputs.samples import make_samples, reason_to_skip
from inference.inputs.tasks import read_tasks
from inference.settings.commands import ExtractionSettings
from inference.settings.inputs import InputSettings
from inference.simple_extraction_inference import main

V = 4_096
TEXTS = ["Paris is in France.", "東京 and 🧩", " one  two\tthree"]
IDS = [[5, 6, 7], [8], [9, 10]]


def read(path, **fields):
    return list(read_documents(InputSettings(dataset=str(path), **fields)))


def prompts(path, **fields):
    return [document.prompt for document in read(path, **fields)]


def token_ids(path, **fields):
    return [list(document.token_ids) for document in read(path, **fields)]


@pytest.mark.parametrize(
    ("sample_by", "wanted"),
    [
        ("line", ["one", "two", " three  ", "four"]),
        ("paragraph", ["one\ntwo", " three  \nfour\n"]),
        ("document", ["one\r\ntwo\r\n\r\n three  \r\nfour\r\n"]),
    ],
)
def test_text_files(tmp_path, sample_by, wanted):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n\r\n three  \r\nfour\r\n")
    assert prompts(path, sample_by=sample_by) == wanted


def test_only_line_feeds_end_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("a\u2028b\x0cc\u0085d\ne", encoding="utf-8")
    assert prompts(tmp_path / "a.txt") == ["a\u2028b\x0cc\u0085d", "e"]


def records_of(field="text"):
    return [{field: text, "id": f"d{i}", "more": [i]} for i, text in enumerate(TEXTS)]


def write_records(path, records):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(records).to_parquet(str(path))
    else:
        datasets.Dataset.from_list(records).save_to_disk(str(path))


SOURCES = ["a.jsonl", "a.parquet", "saved"]


@pytest.mark.parametrize("name", SOURCES)
def test_texts_of_records(tmp_path, name):
    write_records(tmp_path / name, records_of("body"))
    documents = read(tmp_path / name, text_field="body", id_field="id")
    assert [d.prompt for d in documents] == TEXTS
    assert [d.task_id for d in documents] == ["d0", "d1", "d2"]
    numbered = read(tmp_path / name, text_field="body")
    prefix = "train" if name == "saved" else name
    assert [d.task_id for d in numbered] == [f"{prefix}/{i}" for i in range(3)]


@pytest.mark.parametrize("name", SOURCES)
def test_token_ids_of_records(tmp_path, name):
    padded = [{"input_ids": [1, 2, 0, 0], "attention_mask": [1, -2, 0, 0]},
              {"input_ids": [0, 0, 3, 4], "attention_mask": [0, 0, 1, 1]}]  # fmt: skip
    write_records(tmp_path / name, padded)
    assert token_ids(tmp_path / name) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", SOURCES)
def test_chats_of_records(tmp_path, name):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    write_records(tmp_path / name, [{"messages": chat}])
    (document,) = read(tmp_path / name, text_field="messages")
    assert document.messages == chat


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLING = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain"},
    {"role": "assistant", "content": "It rains.", "reasoning_content": "Rain is wet."},
]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time", "description": "Of the day."}},
]
PRINTING = (
    "{{ tools | tojson }}{% for m in messages %}{{ m.role }}{% if m.name is defined %}"
    "({{ m.name }}){% endif %}: {{ m.content }}{% if m.tool_calls is defined %}"
    "{{ m.tool_calls | tojson }}{% endif %}\n{% endfor %}"
)
"""Prints all that it is given."""


@pytest.mark.parametrize("name", [*SOURCES, "tasks"])
def test_chats_with_tools_are_rendered_alike(tmp_path, tokenizer, name):
    """Whatever they are read from: `transformers` renders the same objects."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = PRINTING
    wanted = tokenizer.apply_chat_template(CALLING, tools=TOOLS, tokenize=False)
    assert all(text in wanted for text in ("(weather): rain", '"city": "Paris"', '"Of the day."'))
    assert "null" not in wanted
    record = {"messages": CALLING, "tools": TOOLS}
    if name == "tasks":
        (tmp_path / "tasks.json").write_text(json.dumps([{"task_id": "a"} | record]))
        tasks = read_tasks(str(tmp_path / "tasks.json"))
        settings = ExtractionSettings(model_path="m", tasks_file="tasks.json")
    else:
        write_records(tmp_path / name, [record])
        settings = settings_of(tmp_path / name, text_field="messages")
        tasks = read_inputs(settings, 0)
    (sample,) = make_samples(tasks, tokenizer, V, settings)
    assert sample.prompt == wanted
    assert "tools" not in sample.extra


def test_a_split_of_a_saved_dictionary(tmp_path):
    parts = {"train": datasets.Dataset.from_list([{"text": "a"}]),
             "test": datasets.Dataset.from_list([{"text": "b"}])}  # fmt: skip
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    assert prompts(tmp_path / "both", dataset_split="test") == ["b"]
    with pytest.raises(InputError, match="no split 'other'; choose one of train, test"):
        read(tmp_path / "both", dataset_split="other")


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("a.txt", "dataset_config", "en"),
        ("a.txt", "dataset_split", "test"),
        ("a.txt", "dataset_revision", "main"),
        ("saved", "dataset_config", "en"),
        ("saved", "dataset_revision", "main"),
        ("saved", "sample_by", "document"),
        ("some/corpus", "sample_by", "document"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, place, name, value):
    (tmp_path / "a.txt").write_text("a\n")
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "saved"))
    address = place if "/" in place else str(tmp_path / place)
    with pytest.raises(InputError, match=f"^{name} is for"):
        read_inputs(InputSettings(dataset=address, **{name: value}), 0)


def test_hub_datasets_are_streamed(tmp_path, monkeypatch):
    """Stands in for the hub; what `datasets` does with a name is its own."""
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        endless = ({"text": f"t{i}"} for i in iter(int, 1))
        return endless

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = InputSettings(
        dataset="some/corpus", dataset_config="en", dataset_split="test", sample_limit=2
    )
    tasks = read_inputs(settings, 0)
    assert [task.task_id for task in tasks] == ["test/0", "test/1"]
    assert asked == [(("some/corpus", "en"),
                      {"split": "test", "revision": None, "streaming": True})]  # fmt: skip


def test_the_commit_of_a_hub_dataset_is_in_the_settings(tmp_path, monkeypatch, caplog):
    asked = []

    def dataset_info(self, name, *, revision, timeout):
        asked.append((name, revision))
        if name == "a/private":
            raise OSError("401: no such thing\nfor you")
        return SimpleNamespace(sha="c0ffee")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    settings = InputSettings(dataset="some/corpus", dataset_revision="main")
    assert with_commit(settings) == dataclasses.replace(settings, dataset_revision="c0ffee")
    private = InputSettings(dataset="a/private")
    assert with_commit(private) == private
    assert "the commit of a/private is not known: 401: no such thing" in caplog.text
    (tmp_path / "a.txt").write_text("a")
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "saved"))
    for here in ({"dataset": str(tmp_path / "a.txt")}, {"dataset": str(tmp_path / "saved")},
                 {"dataset": "gs://bucket/a.txt"}, {"tasks_file": "a.json"}):  # fmt: skip
        assert with_commit(InputSettings(**here)) == InputSettings(**here)
    assert asked == [("some/corpus", "main"), ("a/private", None)]


def test_a_name_that_is_nothing_is_told(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^dataset=.*no-such"):
        read(tmp_path / "no-such")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"install the\s+extra `datasets`"):
        read(tmp_path / "no-such")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_token_arrays(tmp_path, name):
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.uint16)
    mask = np.array([[1, 1, 1], [0, 1, 1]], bool)
    if name == "a.npy":
        np.save(tmp_path / name, ids)
        assert token_ids(tmp_path / name) == ids.tolist()
    else:
        np.savez(tmp_path / name, input_ids=ids, attention_mask=mask)
        assert token_ids(tmp_path / name) == [[1, 2, 3], [5, 6]]


def test_a_stream_of_tokens_is_one_document(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10))
    assert token_ids(tmp_path / "a.npy") == [list(range(10))]


def test_a_folder_by_name(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    write_records(tmp_path / "a.jsonl", [{"text": "first"}])
    (tmp_path / "README.md").write_text("no data")
    documents = read(tmp_path)
    assert [d.prompt for d in documents] == ["first", "second"]
    assert [d.task_id for d in documents] == ["a.jsonl/0", "b.txt/0"]


def array_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.csv", b"a,b", ".txt, .jsonl"),
        ("a.jsonl", b"[1]", "line 1: a record is an object"),
        ("a.jsonl", b'{"text": 1}', "must be a text, a chat .* or token ids .*, not int 1"),
        ("a.jsonl", b'{"txt": "a"}', "the record has txt"),
        ("a.jsonl", b'{"text": [1.5]}', "a text, a chat .* or token ids"),
        ("a.jsonl", b'{"text": [true, false]}', "a text, a chat .* or token ids"),
        ("a.jsonl", b'{"text": [1, true]}', "a text, a chat .* or token ids"),
        ("a.jsonl", b'{"text": ["a"]}', "a text, a chat .* or token ids"),
        ("a.jsonl", b'{"text": {"a": 1}}', "a text, a chat .* or token ids"),
        ("a.jsonl", b'{"text": [{"role": "user"}]}', "message 0: content must be a text, or null"),
        ("a.jsonl", b'{"text": [{"role": "user", "content": null, "tool_calls": []}]}', "or null"),
        ("a.jsonl", b'{"text": [{"role": 1, "content": "a"}]}', "message 0: role must be"),
        (
            "a.jsonl",
            b'{"text": [{"role": "tool", "content": "a", "name": 1}]}',
            "name must be a text",
        ),
        (
            "a.jsonl",
            b'{"text": [{"role": "user", "content": "a"}], "tools": "x"}',
            "tools must be a list of JSON schemas",
        ),
        ("a.jsonl", b'{"text": "\\ud800"}', "surrogate"),
        ("a.jsonl", b'{"text": "a"', "line 1"),
        ("a.jsonl", b'{"text": "a", "entity": "\\ud800"}', "surrogate"),
        ("a.jsonl", b'{"text": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        ("a.jsonl", b'{"text": [{"role": "user", "content": "a"}, "b"]}', "message 1"),
        ("a.jsonl", b'{"text": [[1, 2], [3]]}', "a text, a chat .* or token ids"),
        ("a.jsonl", b'{"input_ids": [1, 2], "attention_mask": [1]}', "attention_mask must be 2"),
        ("a.jsonl", b'{"input_ids": [1, 2], "attention_mask": "11"}', "attention_mask must be 2"),
        (
            "a.jsonl",
            b'{"input_ids": [1, 2], "attention_mask": [[1], [1, 2]]}',
            "attention_mask must be 2",
        ),
        ("a.parquet", b"PAR1 no", "no Parquet file"),
        ("a.npy", b"no array", "no array that can be read"),
        ("a.npy", array_bytes(np.zeros((2, 2))), "whole numbers"),
        ("a.npy", array_bytes(np.array([{}], object)), "no array that can be read"),
        ("a.npz", b"PK", "no array that can be read"),
    ],
)
def test_wrong_files_are_told(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read(tmp_path / name)


def test_what_fails_on_the_way_is_told(monkeypatch):
    def load_dataset(*args, **options):
        yield {"text": "a"}
        raise ConnectionError("the hub is gone")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="ConnectionError: the hub is gone"):
        read("some/corpus")
    with pytest.raises(InputError, match="no such file"):
        read("~no-such-user/x")


def test_what_is_null_is_as_what_is_empty(tmp_path):
    records = [{"text": None}, {"text": "a"}, {"text": ""}]
    write_records(tmp_path / "a.parquet", records)
    assert prompts(tmp_path / "a.parquet") == ["", "a", ""]
    write_records(tmp_path / "b.parquet", [{"input_ids": [1], "attention_mask": None}])
    assert token_ids(tmp_path / "b.parquet") == [[1]]


def test_two_documents_of_one_name(tmp_path):
    write_records(tmp_path / "a.jsonl", [{"text": "a", "id": 1}, {"text": "b", "id": 1}])
    with pytest.raises(InputError, match="two documents are named '1'"):
        read(tmp_path / "a.jsonl", id_field="id")
    with pytest.raises(InputError, match="no name"):
        read(tmp_path / "a.jsonl", id_field="name")


def test_an_empty_set(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(InputError, match="holds no document"):
        read_inputs(InputSettings(dataset=str(tmp_path / "a.txt")), 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "neither was given"),
        ({"dataset": "a", "tasks_file": "b"}, "both were given"),
        ({"dataset": "a", "sample_limit": 0}, "sample_limit must be at least 1"),
        ({"dataset": "a", "separator": "bos"}, "separator must be none, eos"),
        ({"tasks_file": "a", "context_length": 5}, "context_length is for documents"),
        ({"tasks_file": "a", "separator": "eos"}, "separator is for documents"),
        ({"tasks_file": "a", "text_field": "body"}, "text_field is for documents"),
        ({"tasks_file": "a", "dataset_split": "test"}, "dataset_split is for documents"),
        ({"tasks_file": "a", "sample_by": "document"}, "sample_by is for documents"),
    ],
)
def test_settings_that_do_not_fit(fields, words):
    with pytest.raises(InputError, match=words):
        ExtractionSettings(model_path="m", **fields)


def test_a_random_sample_is_fair_and_seeded():
    assert random_sample(range(100), 7, 3) == random_sample(range(100), 7, 3)
    assert random_sample(range(5), 7, 3) == list(range(5))
    counts = collections.Counter()
    for seed in range(3000):
        chosen = random_sample(range(12), 4, seed)
        assert chosen == sorted(set(chosen))
        counts.update(chosen)
    # Of 3,000 draws with a chance of one third: 1,000, with a deviation of 26.
    assert all(880 < counts[item] < 1120 for item in range(12))


def settings_of(path, **fields):
    return ExtractionSettings(model_path="m", dataset=str(path), **fields)


def samples_of(tokenizer, path, **fields):
    settings = settings_of(path, **fields)
    tasks = read_inputs(settings, settings.random_seed)
    return list(make_samples(tasks, tokenizer, V, settings, 50))


def test_documents_are_cut_into_pieces_that_make_them_up(tokenizer, tmp_path):
    texts = ["one " * 30, "two", "東京🧩" * 9]
    write_records(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    samples = samples_of(tokenizer, tmp_path / "a.jsonl", context_length=7, separator="eos")
    assert [s.number for s in samples] == list(range(len(samples)))
    for i, text in enumerate(texts):
        pieces = [s for s in samples if s.task_id == f"a.jsonl/{i}"]
        assert [s.sample_idx for s in pieces] == list(range(len(pieces)))
        together = [token for piece in pieces for token in piece.token_ids]
        assert together == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert all(len(piece.token_ids) == 7 for piece in pieces[:-1])
        if len(pieces) > 1:
            firsts = [piece.extra["first_document_token"] for piece in pieces]
            assert firsts == list(range(0, len(together), 7))
    assert samples_of(tokenizer, tmp_path / "a.jsonl")[1].prompt == "two"


@pytest.mark.parametrize(("new_tokens", "longest"), [(0, 50), (1, 50), (3, 48)])
def test_every_piece_fits_the_context(tokenizer, tmp_path, new_tokens, longest):
    (tmp_path / "a.txt").write_text("one " * 200)
    samples = samples_of(tokenizer, tmp_path / "a.txt", max_new_tokens=new_tokens)
    assert {len(s.token_ids) for s in samples[:-1]} == {longest}
    assert all(reason_to_skip(s, 50, new_tokens) is None for s in samples)
    with pytest.raises(InputError, match="does not fit into the model's context of 50"):
        samples_of(
            tokenizer, tmp_path / "a.txt", max_new_tokens=new_tokens, context_length=longest + 1
        )


@pytest.mark.parametrize("separator", ["4096", "2147483647"])
def test_a_separator_that_the_model_does_not_have(tokenizer, tmp_path, separator):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(InputError, match=r"^separator=.*: token id \d+ is not"):
        samples_of(tokenizer, tmp_path / "a.txt", separator=separator)


def test_selectors_of_text_are_linear_in_the_document(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat, " * 20_000)
    started = time.perf_counter()
    samples = samples_of(
        tokenizer, tmp_path / "a.txt", positions=["substring[every,last]:cat"], context_length=40
    )
    assert sum(len(s.positions) for s in samples) == 20_000
    assert time.perf_counter() - started < 30  # minutes, if each piece looked at the whole


def test_only_the_first_pieces(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one " * 30 + "\ntwo\n")
    whole = samples_of(tokenizer, tmp_path / "a.txt", context_length=7)
    first = samples_of(tokenizer, tmp_path / "a.txt", context_length=7, truncate=True)
    assert [s.token_ids for s in first] == [s.token_ids for s in whole if not s.sample_idx]


def test_selectors_of_text_know_the_whole_document(tokenizer, tmp_path):
    """Also where the text straddles a cut, and where it stands before the piece."""
    text = "the cat sat on a mat, the dog too, Constantinople, Constantinople"
    (tmp_path / "a.txt").write_text(text)
    selectors = [["substring:Constantinople"], ["substring[first, last]:Constantinople"],
                 ["regex:d.g"], ["substring[last]:the", "not regex:sat"]]  # fmt: skip
    for positions in selectors:
        (whole,) = samples_of(tokenizer, tmp_path / "a.txt", positions=positions, separator="0")
        for length in (3, 5, 8):
            pieces = samples_of(
                tokenizer, tmp_path / "a.txt", positions=positions, context_length=length,
                separator="0",
            )  # fmt: skip
            found = [s.sample_idx * length + p for s in pieces for p in s.positions]
            assert found == list(whole.positions)
    last = samples_of(tokenizer, tmp_path / "a.txt", context_length=5)
    assert [list(s.positions) for s in last] == [[len(s.token_ids) - 1] for s in last]


def test_special_tokens_are_as_asked(tmp_path, demo_checkpoint):
    """A tokenizer that puts a token before every text, as Llama's does."""
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint)
    plain, (bos, eos) = tokenizer("a b")["input_ids"], tokenizer.all_special_ids[:2]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="[B] $A", special_tokens=[("[B]", bos)]
    )
    (tmp_path / "a.txt").write_text("a b")
    (sample,) = samples_of(tokenizer, tmp_path / "a.txt", separator=str(eos))
    assert list(sample.token_ids) == [bos, *plain, eos]
    (sample,) = samples_of(tokenizer, tmp_path / "a.txt", add_special_tokens=False)
    assert list(sample.token_ids) == plain


def test_a_run_over_a_data_set(tmp_path, demo_checkpoint, tokenizer):
    (tmp_path / "a.txt").write_text("\n".join(f"Line {i} of the text." * 9 for i in range(8)))
    status = main(
        ["--model_path", str(demo_checkpoint), "--dataset", str(tmp_path / "a.txt"),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
         "--layers_to_extract", "1", "--max_new_tokens", "0", "--positions", "all",
         "--context_length", "20", "--separator", "eos", "--random_sample", "3"]
    )  # fmt: skip
    assert status == 0
    lines = [json.loads(x) for x in (tmp_path / "out/outputs.jsonl").read_text().split("\n") if x]
    assert len({line["task_id"] for line in lines}) == 3
    keys = ActivationDataset(tmp_path / "act", layer=1).keys()
    assert len(keys.position) == sum(len(line["prompt_token_ids"]) for line in lines)
    metadata = json.loads((tmp_path / "act/metadata.json").read_text())
    assert metadata["run"]["special_tokens"] == {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "around_a_text": 0,
        "behind_a_document": [tokenizer.eos_token_id],
    }
