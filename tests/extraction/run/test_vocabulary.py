"""The text of tokens in a run: kept by commits, merged, converted, repaired, read."""

import json

import numpy as np
import pytest

from extraction import ActivationDataset, ActivationWriter, verify
from extraction.__main__ import main
from extraction.errors import StoreError
from extraction.run.records import CommitLog
from extraction.run.rows import RowBlock
from extraction.run.vocabulary import (
    LONGEST_TOKEN,
    MOST_TEXT,
    from_document,
    of_ids,
    text_of,
    to_document,
)
from extraction.run_layout import VOCABULARY_FILE
from extraction.storage import open_storage

TEXTS = {0: " the", 1: b"\xe2\x82", 2: "\n", 3: "</script>", 4: "\u202ex\x00", 5: "€" * 1000}


def write(folder, ids, texts=TEXTS, task="t", rows_per_file=3, **settings):
    block = RowBlock.of(
        {"layer_1": np.ones((len(ids), 4), np.float32)},
        [task] * len(ids),
        position=np.arange(len(ids)),
        token_id=np.array(ids),
    )
    with ActivationWriter(
        folder, {"layer_1": 4}, rows_per_file=rows_per_file, token_text=texts, **settings
    ) as writer:
        writer.add(block)
    return folder


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def expected(ids):
    return [text_of(as_bytes(TEXTS[i])) if i in TEXTS else "" for i in ids]


@pytest.mark.parametrize("store_format", ["pickle", "safetensors"])
@pytest.mark.parametrize("scheme", ["folder", "gs", "s3"])
def test_texts_come_back(store_format, scheme, tmp_path, request):
    if scheme != "folder":
        request.getfixturevalue("environment" if scheme == "gs" else "moto_s3")
    address = tmp_path / "run" if scheme == "folder" else f"{scheme}://bucket/run"
    ids = [0, 1, 0, 2, 3, 3, 4, 5, 77, -1]
    write(address, ids, store_format=store_format)
    keys = ActivationDataset(address).keys()
    assert keys.token_text.tolist() == expected(ids)
    assert keys[2:5].token_text.tolist() == expected(ids[2:5])
    assert verify(address, 3).verdict == "good"
    lines = open_storage(address, writable=False).get(VOCABULARY_FILE).decode().split("\n")
    found = [json.loads(line) for line in lines if line]
    assert [line["token_id"] for line in found] == [0, 1, 2, 3, 4, 5]
    assert found[1] == {"token_id": 1, "hex": "e282"}
    assert found[0] == {"token_id": 0, "text": " the"}


def test_each_id_is_in_one_record(tmp_path):
    write(tmp_path, [0, 1, 0, 0, 1, 2, 2, 2, 3])
    records = list(CommitLog(open_storage(tmp_path)).records())
    assert [sorted(record.vocabulary) for record in records] == [[0, 1], [2], [3]]


def test_a_function_gives_texts_and_may_know_none(tmp_path):
    write(tmp_path, [0, 9, 1], lambda token_id: f"<{token_id}>" if token_id < 9 else None)
    assert ActivationDataset(tmp_path).keys().token_text.tolist() == ["<0>", "", "<1>"]


def test_without_texts_they_are_refused_by_name(tmp_path):
    write(tmp_path, [0, 1], None)
    assert not (tmp_path / VOCABULARY_FILE).exists()
    assert verify(tmp_path, 3).verdict == "good"
    with pytest.raises(StoreError, match="the text of tokens is not recorded"):
        _ = ActivationDataset(tmp_path).keys().token_text
    with pytest.raises(StoreError, match="token 3 needs a text"):
        write(tmp_path / "other", [3], {3: 7})


def test_merged_and_converted_runs_keep_them(tmp_path):
    write(tmp_path / "a", [0, 1, 2, 3], task="a", store_format="safetensors")
    write(tmp_path / "b", [3, 4, 5], task="b", store_format="safetensors")
    assert main(["merge", str(tmp_path / "c"), str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert main(["convert", str(tmp_path / "c"), str(tmp_path / "d"), "--format", "pickle"]) == 0
    for name in "cd":
        assert verify(tmp_path / name, 3).verdict == "good"
        keys = ActivationDataset(tmp_path / name).keys()
        assert keys.token_text.tolist() == expected([0, 1, 2, 3, 3, 4, 5])


@pytest.mark.parametrize("damage", ["missing", "differs"])
def test_verify_names_damage_and_repair_mends_it(damage, tmp_path, capsys):
    write(tmp_path, [0, 1, 2])
    before = (tmp_path / VOCABULARY_FILE).read_bytes()
    if damage == "missing":
        (tmp_path / VOCABULARY_FILE).unlink()
    else:
        (tmp_path / VOCABULARY_FILE).write_bytes(before.replace(b"the", b"teh"))
    assert main(["verify", str(tmp_path)]) == 1
    assert f"{VOCABULARY_FILE}" in capsys.readouterr().out
    assert main(["repair", str(tmp_path)]) == 0
    assert (tmp_path / VOCABULARY_FILE).read_bytes() == before
    assert main(["verify", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "document",
    [[], {"x": "a"}, {"-1": "a"}, {"1": 2}, {"1": {"hex": "zz"}}, {"1": {}}, {"9" * 30: "a"}],
)
def test_what_is_no_vocabulary_is_refused(document):
    with pytest.raises(ValueError, match=r"vocabulary|token|hex"):
        from_document(document)
    assert from_document(to_document({1: b"\xff", 2: b"a"})) == {1: b"\xff", 2: b"a"}


def test_the_largest_texts_that_are_allowed_come_back(tmp_path):
    count = MOST_TEXT // LONGEST_TOKEN
    texts = dict.fromkeys(range(count), b"\0" * LONGEST_TOKEN)  # six characters of JSON a byte
    write(tmp_path, list(texts), texts, rows_per_file=count)
    keys = ActivationDataset(tmp_path).keys()
    assert all(text == "\0" * LONGEST_TOKEN for text in keys.token_text)
    assert verify(tmp_path, 3).verdict == "good"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({0: "x" * (LONGEST_TOKEN + 1)}, "text of token 0 has 1,048,577 bytes"),
        (dict.fromkeys(range(9), "x" * LONGEST_TOKEN), "the 9 new token ids of a batch"),
        ({0: "\ud800"}, "token 0 has half of a surrogate pair"),
    ],
)
def test_texts_that_no_record_can_hold_are_refused(texts, message, tmp_path):
    with pytest.raises(StoreError, match=message):
        write(tmp_path, list(texts), texts, rows_per_file=len(texts))
    assert not list(CommitLog(open_storage(tmp_path)).records())


def test_texts_of_a_tokenizer_have_the_same_limits():
    with pytest.raises(StoreError, match="text of token 5 has"):
        of_ids([5], lambda token_id: b"x" * (LONGEST_TOKEN + 1))
