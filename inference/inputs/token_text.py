"""The bytes that a tokenizer's ids stand for.

Decoding an id alone does not give them: a token may be a part of a character, and decoders drop a
space at the beginning. So the tokens themselves are translated, by the rules of the tokenizer's
decoder: GPT-2's alphabet of bytes (Qwen, Llama 3, SmolLM), or SentencePiece's (Gemma, Llama 2),
whose spaces are `▁` and whose bytes are `<0x0A>`.
"""

import functools
import json
import re
from typing import Any

from extraction.run.vocabulary import TokenBytes

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes_of(tokenizer: Any) -> TokenBytes | None:
    """Return a function from token ids to bytes; None without a tokenizer.

    Special and added tokens are their own text.
    """
    if tokenizer is None:
        return None
    added = {token_id: str(token) for token_id, token in _added(tokenizer).items()}
    kinds = _decoder_kinds(tokenizer)

    @functools.cache
    def of(token_id: int) -> bytes | None:
        if token_id in added:
            return added[token_id].encode()
        token = tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return None
        if "ByteLevel" in kinds:
            return bytes_of_alphabet(token)
        if "ByteFallback" in kinds or "Metaspace" in kinds:
            byte = _BYTE.fullmatch(token)
            return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
        return token.encode()

    return of


def _added(tokenizer: Any) -> dict[int, Any]:
    return dict(getattr(tokenizer, "added_tokens_decoder", {}) or {})


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """Return the kinds of the decoders of a fast tokenizer; empty for others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return set()
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return {part.get("type") for part in [decoder, *decoder.get("decoders", ())]}


@functools.cache
def _alphabet() -> dict[str, int]:
    """Return the byte of each character of GPT-2's alphabet.

    Printable characters of Latin-1 are their own bytes; the others are characters from 256 on, in
    order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + number): byte for number, byte in enumerate(others)}


def bytes_of_alphabet(token: str) -> bytes:
    """Return the bytes of a token in GPT-2's alphabet; other characters are their own UTF-8."""
    alphabet = _alphabet()
    if not all(character in alphabet for character in token):
        return token.encode()
    return bytes(alphabet[character] for character in token)
