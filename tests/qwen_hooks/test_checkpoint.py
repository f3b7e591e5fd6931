"""Checkpoints: what is read, what is refused, and back to Hugging Face's format."""

import json
import logging
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from qwen_hooks import (
    Checkpoint,
    ModelError,
    create_model_with_hooks,
    find_checkpoint,
    load_params,
    save_pretrained,
)
from qwen_hooks.safetensors_file import read_header, read_tensor
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "model")


def change_tensors(folder, change):
    """Rewrites the weights after `change(tensors)`."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_every_fault_stands_in_one_error(folder):
    def spoil(tensors):
        del tensors["model.layers.2.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.9.stray.weight"] = np.zeros(3, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].copy()
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(48, np.int64)

    change_tensors(folder, spoil)
    with pytest.raises(ModelError) as caught:
        Checkpoint.open(folder)
    for fault in (
        "missing model.layers.2.mlp.up_proj.weight",
        "missing model.norm.weight",
        "unexpected model.layers.9.stray.weight",
        "misshapen lm_head.weight: [211, 47], config.json asks for [211, 48]",
        "model.layers.0.self_attn.q_proj.bias is stored as I64",
    ):
        assert fault in str(caught.value)


def our_rows(folder, tokens):
    checkpoint = Checkpoint.open(folder)
    layers = list(range(checkpoint.config.num_hidden_layers))
    model = create_model_with_hooks(checkpoint.config, layers)
    params = load_params(checkpoint)
    logits, rows = model.apply(params, jnp.array([tokens]), return_activations=True)
    return logits[0], np.stack([rows[f"layer_{i}"][0] for i in layers])


def equals_torch(folder) -> bool:
    tokens = random_tokens(30)
    pairs = zip(our_rows(folder, tokens), torch_rows(load_torch(folder), tokens), strict=True)
    return all(row_error(ours, theirs) <= 1e-5 for ours, theirs in pairs)


def other_head(tensors):
    """One row of the last piece differs a little."""
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][-1, 3] += 0.5


def same_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()


def head_alone(tensors):
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def frequencies(tensors):
    tensors["model.rotary_emb.inv_freq"] = np.full(4, 7, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("change", "untied"),
    [(other_head, True), (same_head, False), (head_alone, False), (frequencies, False)],
)
def test_tensors_that_a_tied_checkpoint_needs_not_hold(change, untied, tmp_path, caplog):
    folder = make_checkpoint(tmp_path, tie_word_embeddings=True)
    change_tensors(folder, change)
    assert ("lm_head" in load_params(Checkpoint.open(folder))["params"]) == untied
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["lm_head.weight" in record.getMessage() for record in warned] == [True] * untied
    assert equals_torch(folder)


def test_a_head_that_differs_in_the_last_piece_only(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen_hooks.safetensors_file.PIECE_BYTES", 700)  # several pieces
    folder = make_checkpoint(tmp_path, tie_word_embeddings=True)
    change_tensors(folder, same_head)
    assert Checkpoint.open(folder).config.tie_word_embeddings
    change_tensors(folder, other_head)
    assert not Checkpoint.open(folder).config.tie_word_embeddings


def test_a_tied_head_is_compared_by_value_whatever_its_dtype(tmp_path):
    folder = make_checkpoint(tmp_path, stored=torch.bfloat16, tie_word_embeddings=True)

    def widened(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)

    change_tensors(folder, widened)
    assert Checkpoint.open(folder).config.tie_word_embeddings
    assert equals_torch(folder)


def test_a_tied_head_that_cannot_be_compared_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, tie_word_embeddings=True)

    def shorter(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][:-1].copy()

    change_tensors(folder, shorter)
    with pytest.raises(ModelError, match=r"misshapen lm_head\.weight"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "name", ["rotary_emb.inv_freq", "model.layers.0.mlp.rotary_emb.inv_freq", "score.weight"]
)
def test_tensors_that_may_mean_something_are_not_ignored(name, folder):
    change_tensors(folder, lambda tensors: tensors.update({name: np.zeros(4, np.float32)}))
    with pytest.raises(ModelError, match=f"unexpected {name}"):
        Checkpoint.open(folder)


def test_an_adapter_beside_a_model_is_warned_of(folder, caplog):
    Checkpoint.open(folder)
    assert not caplog.records
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": np.zeros(3, np.float32)}, folder / "adapter_model.safetensors")
    Checkpoint.open(folder)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "adapter_config.json" in record.getMessage()
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_cut_off_files_are_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"cut off|not a safetensors|damaged"):
        Checkpoint.open(folder)


def test_damaged_headers_are_refused(folder):
    file = folder / "model.safetensors"
    for header in (b"[]", b"{{", b'{"a": {"dtype": "F32"}}', b'{"a": 3}'):
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
        with pytest.raises(ModelError, match=r"damaged|not a safetensors"):
            Checkpoint.open(folder)
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(ModelError, match="size of 'a' does not fit"):
        Checkpoint.open(folder)


def rewrite_header(file, change):
    """Puts `change(header)` in the place of a header, as text if it gives text."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    changed = change(header)
    text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


UP, GATE = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "gate"))


def overlap(header):
    header[UP]["data_offsets"] = header[GATE]["data_offsets"]


def move(header, by):
    header[UP]["data_offsets"] = [offset + by for offset in header[UP]["data_offsets"]]


def negative(header):
    size = header[UP]["data_offsets"][1] - header[UP]["data_offsets"][0]
    header[UP]["data_offsets"] = [-size, 0]


def twice(header):
    entry = json.dumps(header[GATE])
    return json.dumps(header)[:-1] + f', "{UP}": {entry}}}'


@pytest.mark.parametrize(
    "change", [overlap, lambda h: move(h, 4), lambda h: move(h, -4), negative, twice]
)
def test_tensors_that_lie_where_others_do_are_refused(change, folder):
    rewrite_header(folder / "model.safetensors", change)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        Checkpoint.open(folder)


def test_bytes_after_the_last_tensor_are_refused(folder):
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ModelError, match="after the last tensor"):
        Checkpoint.open(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path, shard="40KB")
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    stray = dict(list(load_file(first).items())[:1])
    save_file(load_file(second) | stray, second)
    with pytest.raises(ModelError, match=f"{next(iter(stray))} is in more than one file"):
        Checkpoint.open(folder)


def test_files_that_are_not_there(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be read"):
        Checkpoint.open(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        Checkpoint.open(folder)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-1.safetensors"}}))
    with pytest.raises(ModelError, match=r"names model-1\.safetensors, which is missing"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_those_of_the_file(stored, dtype, tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, stored=stored))
    params = load_params(checkpoint, dtype)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    weights = load_torch(tmp_path, stored).state_dict()
    wanted = weights["model.layers.1.mlp.down_proj.weight"].float().numpy().T
    loaded = params["layers_1"]["mlp"]["down_proj"]["kernel"]
    np.testing.assert_array_equal(loaded, wanted.astype(dtype))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "index",
    [
        None,
        (slice(3, 40), slice(None)),
        (slice(None), slice(5, 6)),
        (slice(0, 0), slice(2, 9)),
        (slice(7, 21), slice(1, 30)),
    ],
)
def test_parts_of_a_tensor(tmp_path, monkeypatch, transposed, index):
    monkeypatch.setattr("qwen_hooks.safetensors_file.PIECE_BYTES", 700)  # several pieces
    whole = np.random.default_rng(0).normal(size=(50, 41)).astype(ml_dtypes.bfloat16)
    save_file({"other": np.ones(3, np.float32), "w": whole}, tmp_path / "w.safetensors")
    stored = read_header(tmp_path / "w.safetensors")["w"]
    part = read_tensor(stored, np.dtype(np.float32), transposed=transposed, index=index)
    wanted = whole.T if transposed else whole
    np.testing.assert_array_equal(part, wanted[index or ...].astype(np.float32))


@pytest.mark.parametrize("tied", [False, True])
def test_saved_checkpoints_are_hugging_faces(tied, tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 2.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    original = make_checkpoint(tmp_path / "a", tie_word_embeddings=tied, rope_parameters=rope)
    checkpoint = Checkpoint.open(original)
    save_pretrained(tmp_path / "b", checkpoint.config, load_params(checkpoint))
    tokens = random_tokens(100)
    before, after = (torch_rows(load_torch(f), tokens) for f in (original, tmp_path / "b"))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_saved_in_another_dtype(folder, tmp_path):
    checkpoint = Checkpoint.open(folder)
    save_pretrained(tmp_path / "b", checkpoint.config, load_params(checkpoint), jnp.bfloat16)
    stored = Checkpoint.open(tmp_path / "b").tensors
    assert {tensor.dtype for tensor in stored.values()} == {"BF16"}


def test_stop_tokens_come_from_the_generation_config_first(folder):
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 5}
    (folder / "config.json").write_text(json.dumps(config))
    generation = folder / "generation_config.json"
    for content, wanted in (('{"eos_token_id": [7, 8]}', (7, 8)), ('{"eos_token_id": 9}', (9,)),
                            ("{}", (5,)), ('{"eos_token_id": 0}', (0,))):  # fmt: skip
        generation.write_text(content)
        assert Checkpoint.open(folder).stop_token_ids == wanted
    generation.unlink()
    assert Checkpoint.open(folder).stop_token_ids == (5,)
    generation.write_text("[")
    with pytest.raises(ModelError, match="damaged"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("path", "words"),
    [("./nowhere", "no folder"), ("/nowhere/at/all", "no folder"), ("nowhere", "owner/name"),
     ("owner/na me", "not a valid hub id"), ("nobody/nothing", "from the hub failed")],
)  # fmt: skip
def test_neither_a_folder_nor_on_the_hub(path, words):
    with pytest.raises(ModelError, match=words):
        find_checkpoint(path)


def test_local_folders_have_no_revision_and_files_are_no_folders(folder):
    assert find_checkpoint(str(folder)) == folder
    with pytest.raises(ModelError, match="revision"):
        find_checkpoint(str(folder), "main")
    with pytest.raises(ModelError, match="is a file"):
        find_checkpoint(str(folder / "config.json"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "other"])
@pytest.mark.parametrize("kind", ["FIFO", "link to a device"])
def test_what_is_no_file_in_a_checkpoint_is_refused_and_not_waited_for(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=f"{name} is not a regular file"):
        Checkpoint.open(folder)
