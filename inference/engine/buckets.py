"""Sequence lengths that programs are compiled for.

Quarter octaves (16, 20, 24, 28, 32, 40, 48, 56, 64, ...): at most a fifth of a bucket is padding,
and a context of 32,768 tokens needs 45 of them.
"""

SMALLEST_BUCKET = 16


def bucket_length(tokens: int) -> int:
    """Return the smallest bucket that holds so many tokens."""
    if tokens <= SMALLEST_BUCKET:
        return SMALLEST_BUCKET
    step = 1 << ((tokens - 1).bit_length() - 3)  # a quarter of the power of two below
    return -(-tokens // step) * step
