"""Print prompts with their chosen tokens marked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from inference.inputs.samples import Sample, decode_text
from inference.outputs import FOUND_FIELD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"


def mark_tokens(
    tokenizer: PreTrainedTokenizerBase | None, token_ids: Sequence[int], positions: Sequence[int]
) -> str:
    """Return the tokens' text, with chosen tokens between ⟦ and ⟧.

    Args:
        tokenizer: tokenizer of the model; None: the text is made of token ids.
        token_ids: token ids of a prompt.
        positions: positions of the chosen tokens.
    """
    chosen, parts = set(positions), []
    for is_chosen, group in groupby(range(len(token_ids)), key=lambda at: at in chosen):
        ids = [token_ids[at] for at in group]
        text = decode_text(tokenizer, ids, skip_special_tokens=False)
        if text is None:
            text = " ".join(map(str, ids))
        parts.append(f"{OPEN}{text}{CLOSE}" if is_chosen else text)
    return ("" if tokenizer is not None else " ").join(parts)


def print_samples(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase | None, count: int
) -> None:
    """Print the first `count` samples with their chosen tokens marked."""
    for sample in samples[:count]:
        print(
            f"{sample.task_id}, sample_idx {sample.sample_idx}: {len(sample.positions)} of"
            f" {len(sample.token_ids)} prompt tokens"
        )
        for found in sample.extra.get(FOUND_FIELD, ()):
            place = "no message: in the chat template's own text"
            if found["message"] is not None:
                place = f"message {found['message']} ({found['role']})"
            print(f"  {found['selector']} found {found['text']!r} in {place}")
        print(mark_tokens(tokenizer, sample.token_ids, sample.positions))
