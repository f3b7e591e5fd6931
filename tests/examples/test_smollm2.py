"""The real model of the demo: as transformers reads the GGUF file, and rows as torch has them."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.demo import TEXT
from examples.smollm2 import GgufError, convert, find_gguf, main
from inference import capture, load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source():
    try:
        return find_gguf()
    except GgufError as error:  # `make test` installs it
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    convert(source, folder)
    return folder


@pytest.fixture(scope="module")
def theirs(source):
    """transformers' own reading of the file."""
    return AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )


def texts():
    """A thousand: real ones, and numbers, letters and symbols of all kinds.

    Without digits of other scripts: transformers does not read how a GGUF file's texts are split,
    and takes a space before such a digit for part of it. SmolLM2 lets each digit stand alone.
    """
    lines = (ROOT / TEXT).read_text("utf-8").splitlines()
    real = [json.loads(line)["text"] for line in lines]
    found = [text[at : at + 300] for text in real for at in range(0, len(text), 300)]
    source = np.random.default_rng(0)
    ranges = [(32, 127), (0xA0, 0x2000), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF)]
    while len(found) < 980:
        starts = [ranges[i] for i in source.integers(len(ranges), size=40)]
        letters = [chr(source.integers(*each)) for each in starts]
        found.append("".join(each for each in letters if each.isascii() or not each.isnumeric()))
    found += ["", " ", "  a\n\n b\t\t c  ", "I'll we're 3.14 x2y", "<|im_start|>user\nhi<|im_end|>"]
    return found + [" ".join(map(str, source.integers(10**8, size=9))) for _ in range(15)]


def test_weights_are_those_that_transformers_reads(folder, theirs):
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    expected = theirs.state_dict()
    assert set(ours) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(ours[name], weight), name


def test_ids_of_a_thousand_texts_are_those_of_transformers(folder, source):
    ours = AutoTokenizer.from_pretrained(folder)
    expected = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    told = texts()
    assert len(told) == 1000
    assert [ours(text)["input_ids"] for text in told] == [
        expected(text)["input_ids"] for text in told
    ]
    assert ours.special_tokens_map == expected.special_tokens_map
    assert ours.chat_template == expected.chat_template


def test_digits_of_every_script_stand_alone(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for digit in ("7", "\u194b"):
        alone = tokenizer(digit)["input_ids"]
        assert tokenizer(f"a {digit}{digit}")["input_ids"] == [
            *tokenizer("a ")["input_ids"],
            *alone,
            *alone,
        ]


def test_rows_are_those_of_torchs_llama(folder, theirs):
    text = json.loads((ROOT / TEXT).read_text("utf-8").splitlines()[0])["text"]
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:200]
    captured = capture(load_model(folder), [ids], ["layer_15", "layer_29"], positions="all")
    blocks = dict.fromkeys((15, 29))
    hooks = [
        theirs.model.layers[i].register_forward_hook(
            lambda _, __, out, i=i: blocks.__setitem__(i, out)
        )
        for i in blocks
    ]
    with torch.inference_mode():
        theirs(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    for i, expected in blocks.items():
        expected = expected[0].numpy().astype(np.float64)
        rows = np.asarray(captured.activations[f"layer_{i}"], np.float64)
        errors = np.abs(rows - expected).max(-1) / np.abs(expected).max(-1)
        assert errors.shape == (200,)
        assert errors.max() < 1e-4


def test_generated_tokens_are_those_of_generate(folder, theirs):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The state of the Union is")["input_ids"]
    captured = capture(load_model(folder), [ids], "layer_0", max_new_tokens=32)
    expected = theirs.generate(
        torch.tensor([ids]), max_new_tokens=32, do_sample=False, pad_token_id=2, eos_token_id=2
    )
    assert list(captured.generated[0]) == expected[0, len(ids) :].tolist()


def test_a_file_of_another_model_is_refused(tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = [str(tmp_path / "out"), "--gguf", str(tmp_path / "other.gguf")]
    assert main(command) == 2
    assert "('qwen2', 'gpt2')" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
