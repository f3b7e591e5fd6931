"""Activation extraction from Python, in four examples. Each stands alone; read any of them.

    python -m examples.example_activation_extraction
    python -m examples.example_activation_extraction --model_path Qwen/Qwen2.5-0.5B

1. Basic layer extraction     2. Generation with extraction
3. Saving for SAE training    4. Using real Hugging Face weights

Without `--model_path`, example 4 makes the tiny demo checkpoint and uses that.
"""

if __name__ == "__main__" and not __package__:
    # Run as a script: packages are found beside this folder.
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer

from examples.make_demo import make_checkpoint
from extraction import ActivationExtractionConfig, ActivationExtractor
from inference.engine.simple_run import decode_step, prefill
from qwen_hooks import (
    Checkpoint,
    QwenConfig,
    create_model_with_hooks,
    find_checkpoint,
    load_params,
)

TINY = QwenConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def basic_layer_extraction() -> None:
    """One call gives logits and the residual stream after the chosen blocks, for every token."""
    model = create_model_with_hooks(TINY, layers_to_extract=[2, 4, 5])
    input_ids = jnp.array([[5, 17, 99, 4], [8, 1, 0, 0]], jnp.int32)
    attention_mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], jnp.int32)
    params = model.init(jax.random.key(0), input_ids)

    logits, activations = model.apply(params, input_ids, attention_mask, return_activations=True)
    print("logits", logits.shape)
    for name, values in activations.items():
        print(name, values.shape, values.dtype)
    # The last token of each sequence: with padding on the right that is not [:, -1].
    last = attention_mask.sum(axis=1) - 1
    print("last tokens of layer_4", activations["layer_4"][jnp.arange(2), last].shape)


def generation_with_extraction(steps: int = 5) -> None:
    """Prefill once, then one token at a time with a KV cache; a row of every layer each step."""
    model = create_model_with_hooks(TINY, layers_to_extract=[2, 5])
    prompt = np.array([[3, 1, 4, 1, 5]], np.int32)
    params = model.init(jax.random.key(0), prompt)

    length = prompt.shape[1]
    last = np.array([[length - 1]], np.int32)  # the slots whose rows are wanted
    rows, logits, cache = prefill(
        model, params, prompt, np.int32(length), last, predict=True, capacity=length + steps
    )
    for step in range(steps):
        assert logits is not None
        assert cache is not None
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        shapes = ", ".join(f"{hook} {values.shape}" for hook, values in rows.items())
        print(f"step {step}: {shapes}, next token {int(token[0])}")
        rows, logits, cache = decode_step(model, params, token, np.int32(length + step), cache)


def saving_for_sae_training(folder: Path) -> None:
    """Batches of rows on disk, as an SAE's training loop wants to read them."""
    model = create_model_with_hooks(TINY, layers_to_extract=[2, 5])
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    config = ActivationExtractionConfig(
        output_dir=folder,
        layers_to_extract=[2, 5],
        hidden_dim=TINY.hidden_size,
        model_name="tiny",
        save_every_n_samples=8,
    )
    with ActivationExtractor(config) as extractor:
        for sample in range(5):
            token_ids = np.random.default_rng(sample).integers(256, size=(4, 12)).astype(np.int32)
            _, activations = model.apply(params, jnp.array(token_ids), return_activations=True)
            for layer in extractor.config.layers_to_extract:
                last_token_activation = activations[f"layer_{layer}"][:, -1, :]
                extractor.extract_layer_activation(
                    layer,
                    last_token_activation,
                    task_id=[f"batch_{sample}"] * 4,
                    sample_idx=range(4),
                    step=0,
                    position=11,
                    token_id=token_ids[:, -1],
                )

    with (folder / "layer_5_batch_000001.pkl").open("rb") as file:
        data = pickle.load(file)
    rows = np.stack([item["activation"] for item in data["activations"]])
    print(f"layer {data['layer']}: {rows.shape}")


def real_hugging_face_weights(model_path: str) -> None:
    """A checkpoint from a folder or the hub, with its tokenizer."""
    checkpoint = Checkpoint.open(find_checkpoint(model_path))
    model = create_model_with_hooks(checkpoint.config)  # every layer
    params = load_params(checkpoint, jnp.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    input_ids = jnp.array([tokenizer("The capital of France is")["input_ids"]], jnp.int32)
    logits, activations = model.apply(params, input_ids, return_activations=True)
    print("next token:", repr(tokenizer.decode([int(logits[0, -1].argmax())])))
    for name, values in activations.items():
        print(f"{name}: norm of the last token {float(jnp.linalg.norm(values[0, -1])):.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", help="folder or hub id for example 4")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("1. Basic layer extraction")
        basic_layer_extraction()
        print("\n2. Generation with extraction")
        generation_with_extraction()
        print("\n3. Saving for SAE training")
        saving_for_sae_training(folder / "activations")
        print("\n4. Using real Hugging Face weights")
        if options.model_path is None:
            make_checkpoint(folder / "checkpoint")
        real_hugging_face_weights(options.model_path or str(folder / "checkpoint"))


if __name__ == "__main__":
    main()
