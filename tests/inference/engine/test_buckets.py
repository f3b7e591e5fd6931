"""Buckets against the series they are meant to be, written down another way."""

import bisect

from inference.engine.buckets import SMALLEST_BUCKET, bucket_length

LENGTHS = range(1, 40_001)
# m * 2^k with m from 4 to 7: four in each octave.
QUARTER_OCTAVES = sorted(m << k for m in (4, 5, 6, 7) for k in range(2, 15))


def test_bucket_is_the_next_quarter_octave():
    expected = [QUARTER_OCTAVES[bisect.bisect_left(QUARTER_OCTAVES, n)] for n in LENGTHS]
    assert [bucket_length(n) for n in LENGTHS] == expected


def test_at_most_a_fifth_is_padding():
    wasted = {n: 1 - n / bucket_length(n) for n in LENGTHS if n > SMALLEST_BUCKET}
    assert 0 <= min(wasted.values()) <= max(wasted.values()) < 0.2


def test_longer_prompts_have_no_shorter_buckets():
    buckets = [bucket_length(n) for n in LENGTHS]
    assert buckets == sorted(buckets)


def test_a_bucket_is_its_own_bucket():
    assert all(bucket_length(b) == b for b in map(bucket_length, LENGTHS))


def test_a_context_needs_few_programs():
    assert len({bucket_length(n) for n in range(1, 32_769)}) == 45
