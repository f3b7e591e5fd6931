"""The real model of the demo: as transformers reads the GGUF file, and rows as torch has them."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.demo import TEXT
from examples.smollm2 import convert, main
from inference import capture, load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def theirs(source):
    """transformers' own reading of the file."""
    return AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )


def texts():
    """Return a thousand texts: real ones, and numbers, letters and symbols of all kinds.

    Digits of other scripts are left out: transformers ignores the field that says how a GGUF
    file's texts are split, and joins a space with such a digit. SmolLM2 splits off each digit.
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


def test_weights_are_those_of_ggmls_block_formats(folder, source):
    """A block has 32 weights: q * d + m of four bits (Q4_1), or q * d of eight bits (Q8_0).

    The formats are in llama.cpp's ggml/src/ggml-common.h.
    """
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    ours = load_file(folder / "model.safetensors")
    blocks = stored["blk.7.ffn_down.weight"].data.reshape(-1, 20)
    scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[..., None]
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    weight = ours["model.layers.7.mlp.down_proj.weight"]
    assert np.array_equal(weight, (nibbles * scale + least).reshape(weight.shape))

    blocks = stored["token_embd.weight"].data.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    weight = ours["model.embed_tokens.weight"]
    assert np.array_equal(
        weight, (blocks[:, 2:].copy().view(np.int8) * scale).reshape(weight.shape)
    )


def test_bfloat16_weights_are_the_float32_weights_rounded(folder, source, tmp_path, capsys):
    assert main([str(tmp_path), "--dtype", "bfloat16", "--gguf", str(source)]) == 0
    assert "bfloat16" in capsys.readouterr().out
    rounded = load_torch_file(tmp_path / "model.safetensors")
    exact = load_torch_file(folder / "model.safetensors")
    assert set(rounded) == set(exact)
    for name, weight in exact.items():
        assert torch.equal(rounded[name], weight.to(torch.bfloat16)), name
    assert load_model(tmp_path).config == load_model(folder).config


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


def rewrite(source, target, **changed):
    """Write the metadata of a GGUF file without its tensors; None leaves a field out."""
    fields = {name: field.contents() for name, field in gguf.GGUFReader(source).fields.items()}
    writer = gguf.GGUFWriter(target, changed.pop("general.architecture", "llama"))
    for name, value in (fields | changed).items():
        if name.startswith("GGUF.") or name == "general.architecture" or value is None:
            continue
        kind = gguf.GGUFValueType.get_type(value)
        if kind == gguf.GGUFValueType.INT32:
            kind = gguf.GGUFValueType.UINT32
        writer.add_key_value(name, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2'"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe'"),
        ({"tokenizer.ggml.add_bos_token": True}, "tokenizer.ggml.add_bos_token is True"),
        ({"tokenizer.chat_template": None}, "missing: tokenizer.chat_template"),
        ({"llama.rope.scaling.type": "yarn"}, "not understood: llama.rope.scaling.type"),
        ({"llama.rope.dimension_count": 32}, "llama.rope.dimension_count is 32, not the 64"),
        ({"tokenizer.ggml.token_type": [1, 3, 4]}, "types [4]"),
        ({"tokenizer.ggml.token_type": [1, 3]}, "differ in number"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "the merge 'a b c'"),
        ({"tokenizer.ggml.eos_token_id": 49152}, "eos_token_id is no id of a token"),
        ({"llama.attention.head_count": 7}, "do not divide"),
        ({"llama.attention.head_count": 0}, "head_count is no whole number from 1"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base is no number above 0"),
        ({}, "no tensor for model.embed_tokens.weight"),
        ({"llama.block_count": 2**32 - 1}, "num_hidden_layers is 4294967295, above"),
    ],
    ids=str,
)
def test_a_file_of_another_model_is_refused(changed, told, source, tmp_path, capsys):
    rewrite(source, tmp_path / "other.gguf", **changed)
    command = [str(tmp_path / "out"), "--gguf", str(tmp_path / "other.gguf")]
    assert main(command) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 3, 4, 24, 5_000, 1_700_000, 2_000_000])
def test_a_file_that_is_cut_off_is_refused(size, source, tmp_path, capsys):
    with source.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    assert main([str(tmp_path / "out"), "--gguf", str(tmp_path / "cut.gguf")]) == 2
    assert "cut.gguf cannot be read as GGUF" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--gguf", str(tmp_path / "none.gguf")]) == 2
    assert "none.gguf" in capsys.readouterr().err


def test_a_folder_that_is_in_use_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    assert main([str(tmp_path), "--gguf", str(source)]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupted_conversion_leaves_nothing(source, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("examples.smollm2.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def write_tiny(target, without=()):
    """Write a GGUF file of SmolLM2's kind with one layer, 258 tokens, and not these tensors."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())[:255], "ab", "<a>", "<b>"]
    config = LlamaConfig(
        hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=258, tie_word_embeddings=True,
    )  # fmt: skip
    writer = gguf.GGUFWriter(target, "llama")
    for name, value in {
        "llama.embedding_length": 64, "llama.feed_forward_length": 32, "llama.block_count": 1,
        "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
        "llama.context_length": 128, "llama.vocab_size": 258, "llama.rope.dimension_count": 32,
        "tokenizer.ggml.bos_token_id": 256, "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.padding_token_id": 257, "tokenizer.ggml.unknown_token_id": 256,
    }.items():  # fmt: skip
        writer.add_uint32(name, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 1e4)
    for name, text in {"model": "gpt2", "pre": "smollm"}.items():
        writer.add_string(f"tokenizer.ggml.{name}", text)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_bool("tokenizer.ggml.add_space_prefix", False)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [1] * 256 + [3, 3])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in LlamaForCausalLM(config).state_dict().items():
        if name not in {"lm_head.weight", *without}:
            writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_without_a_tensor_is_refused(tmp_path, capsys):
    write_tiny(tmp_path / "tiny.gguf", without=["model.layers.0.mlp.up_proj.weight"])
    assert main([str(tmp_path / "out"), "--gguf", str(tmp_path / "tiny.gguf")]) == 2
    assert "no tensor for model.layers.0.mlp.up_proj.weight" in capsys.readouterr().err


def test_a_damaged_file_is_converted_or_refused_in_one_line(tmp_path, capsys):
    write_tiny(tmp_path / "tiny.gguf")
    assert main([str(tmp_path / "whole"), "--gguf", str(tmp_path / "tiny.gguf")]) == 0
    content = (tmp_path / "tiny.gguf").read_bytes()
    source = np.random.default_rng(1)
    refused = 0
    for number in range(100):
        damaged = bytearray(content)
        for at in source.integers(0, 9_000, size=source.integers(1, 4)):
            damaged[at] = source.integers(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        out = tmp_path / f"out{number}"
        status = main([str(out), "--gguf", str(tmp_path / "damaged.gguf")])
        lines = capsys.readouterr().err.splitlines()
        assert (status, len(lines)) in {(0, 0), (2, 1)}, lines
        assert out.exists() == (status == 0)
        refused += status == 2
    assert 25 < refused < 100
