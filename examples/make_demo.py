"""Makes the demo: a tiny Qwen2 checkpoint with its own tokenizer, and a few ARC-style tasks.

    python -m examples.make_demo FOLDER     writes FOLDER/checkpoint and FOLDER/tasks.json

The weights are random, from a fixed seed: the demo shows files and formats, not language. The
tokenizer is a byte-level BPE like Qwen's, digits one by one, with Qwen's special tokens and chat
template.
"""

if __name__ == "__main__" and not __package__:
    # Run as a script: packages are found beside this folder.
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inference.inputs.arc import ArcTask, Augmentation, arc_prompt
from inference.inputs.arc_grids import GRID_ENCODERS, Grid
from qwen_hooks import QwenConfig, RopeConfig, create_model_with_hooks, save_pretrained

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (  # as in Qwen2's tokenizer: contractions, words, single digits, punctuation, white space
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
SEED = 0


def make_tasks(count: int = 6) -> dict:
    """ARC-style tasks: a random grid is mirrored, turned or recoloured."""
    source = random.Random(SEED)
    rules = {
        "mirror": Augmentation(mirrored=True),
        "quarter_turn": Augmentation(quarter_turns=1),
        "half_turn": Augmentation(quarter_turns=2),
        "swap_colours": Augmentation(colours=(0, 2, 1, 3, 4, 5, 6, 7, 8, 9)),
    }

    def random_grid() -> Grid:
        height, width = source.randint(2, 6), source.randint(2, 6)
        row = [(0, 0, 1, 2, 3)] * width
        return tuple(tuple(map(source.choice, row)) for _ in range(height))

    tasks = {}
    for number in range(count):
        name = list(rules)[number % len(rules)]
        pairs = []
        for _ in range(source.randint(3, 4)):
            grid = random_grid()
            pairs.append({"input": grid, "output": rules[name].apply(grid)})
        tasks[f"{name}_{number}"] = {"train": pairs[:-1], "test": pairs[-1:]}
    return tasks


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 500 tokens, trained on the demo's own prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=509,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _corpus() -> list[str]:
    texts = [__doc__ or "", "You are a helpful assistant.\nsystem\nuser\nassistant\n"]
    for task_id, task in make_tasks().items():
        pairs = [(pair["input"], pair["output"]) for pair in task["train"]]
        tests = tuple(pair["input"] for pair in task["test"])
        arc = ArcTask(
            task_id=task_id,
            train=tuple(pairs),
            test_inputs=tests,
            test_outputs=(None,) * len(tests),
        )
        texts.append(arc_prompt(arc, 0, GRID_ENCODERS["digits"], Augmentation()))
    return texts


def make_checkpoint(folder: Path) -> None:
    """A Qwen2 of four layers with seven query heads for each of two KV heads, like the 0.5B."""
    tokenizer = make_tokenizer()
    config = QwenConfig(
        vocab_size=512,
        hidden_size=112,
        intermediate_size=304,
        num_hidden_layers=4,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        rope=RopeConfig(theta=1_000_000.0),
        eos_token_ids=(cast(int, tokenizer.eos_token_id),),
    )
    model = create_model_with_hooks(config)
    params = jax.jit(model.init)(jax.random.key(SEED), jnp.zeros((1, 1), jnp.int32))
    save_pretrained(folder, config, params, dtype=jnp.bfloat16)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    make_checkpoint(folder / "checkpoint")
    (folder / "tasks.json").write_text(json.dumps(make_tasks()) + "\n", encoding="utf-8")
    print(f"wrote {folder / 'checkpoint'} and {folder / 'tasks.json'}")


if __name__ == "__main__":
    main()
