"""The bytes of tokens: those of a text's tokens, joined, are the text."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from extraction.run.vocabulary import text_of
from inference.inputs.token_text import token_bytes_of

CORPUS = ["the cat sat on the mat", "né à Zürich 😀 日本語", "a  b\n\tc", "x = 1;\r\n"] * 3


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's way, as Qwen, Llama 3 and SmolLM have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_piece() -> PreTrainedTokenizerFast:
    """SentencePiece's way, as Gemma and Llama 2 have it: `▁` for spaces, `<0x0A>` for bytes."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    pieces += ["th", "▁t", "é"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[("t", "h"), ("▁", "t")],
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<bos>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"byte level": byte_level(), "SentencePiece": sentence_piece()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_tokens_of_a_text_are_its_bytes(kind, text):
    tokenizer = TOKENIZERS[kind]
    of = token_bytes_of(tokenizer)
    if "▁" in text or "<" in text:  # the piece of a space; beginnings of special tokens
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(of(token_id) for token_id in ids) == text.encode()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_are_their_own_text_and_unknown_ids_have_none(kind):
    tokenizer = TOKENIZERS[kind]
    of = token_bytes_of(tokenizer)
    special = {"byte level": "<|endoftext|>", "SentencePiece": "<bos>"}[kind]
    assert of(tokenizer.convert_tokens_to_ids(special)) == special.encode()
    assert of(len(tokenizer) + 5) is None


def test_parts_of_characters_are_shown_as_their_bytes():
    of = token_bytes_of(TOKENIZERS["SentencePiece"])
    ids = TOKENIZERS["SentencePiece"]("日", add_special_tokens=False)["input_ids"]
    assert [text_of(of(token_id)) for token_id in ids] == ["\\xe6", "\\x97", "\\xa5"]
    assert token_bytes_of(None) is None
