"""The plan: every sample exactly once, whatever happens to the processes that run it."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.buckets import bucket_length
from inference.engine.plan import (
    PlannedSample,
    PlanSettings,
    own_units,
    pack_batches,
    padding_efficiency,
    plan_units,
    rows_per_file,
)


def samples_of(lengths, rows=1):
    return [PlannedSample(number=i, tokens=n, rows=rows) for i, n in enumerate(lengths)]


plans = st.builds(
    PlanSettings,
    tokens_per_batch=st.integers(1, 600),
    max_batch_size=st.integers(1, 9),
    rows_per_unit=st.integers(1, 12),
    window=st.integers(1, 30),
    pack_length=st.sampled_from([0, 0, 16, 100]),
)
lengths = st.lists(st.integers(0, 200), max_size=70)


@given(lengths, plans, st.integers(1, 4))
def test_units_hold_every_sample_once_in_a_bucket_that_fits(lengths, plan, rows):
    units = list(plan_units(samples_of(lengths, rows), plan))
    assert [unit.number for unit in units] == list(range(len(units)))
    assert sorted(s for unit in units for s in unit.samples) == list(range(len(lengths)))
    for unit in units:
        assert len({sample // plan.window for sample in unit.samples}) == 1
        if not unit.bucket:
            assert all(lengths[sample] == 0 for sample in unit.samples)
            continue
        assert all(0 < lengths[sample] <= unit.bucket for sample in unit.samples)
        assert len(unit.samples) == 1 or len(unit.samples) * rows <= plan.rows_per_unit
        assert sorted(sample for row in unit.rows for sample in row) == list(unit.samples)
        for row in unit.rows:
            assert sum(lengths[sample] for sample in row) <= unit.bucket
            assert len(row) == 1 or unit.bucket == plan.pack_length
        assert unit.bucket != plan.pack_length or plan.pack_length >= lengths[unit.samples[0]]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80))
def test_no_two_packed_rows_would_fit_into_one(lengths):
    plan = PlanSettings(
        tokens_per_batch=64, max_batch_size=1, rows_per_unit=1000, window=1000, pack_length=64
    )
    (unit,) = plan_units(samples_of(lengths), plan)
    filled = sorted(sum(lengths[sample] for sample in row) for row in unit.rows)
    assert len(filled) == 1 or filled[0] + filled[1] > 64


@pytest.mark.parametrize(
    ("rows", "row_bytes", "wanted"),
    [
        ([1] * 9000, 3584, 512),  # the last token's
        ([1, 3], 3584, 1024),
        ([1000] * 9000, 1792, 37449),  # every token's: 64 MiB
        ([30] * 600, 1792, 15360),  # of 512 samples
        ([1000], 1 << 20, 512),
        ([], 4, 512),
    ],
)
def test_files_hold_512_samples_or_64_mib(rows, row_bytes, wanted):
    samples = [PlannedSample(number=i, tokens=5, rows=n) for i, n in enumerate(rows)]
    skipped = PlannedSample(number=len(rows), tokens=0, rows=9)
    assert rows_per_file([*samples, skipped], row_bytes) == wanted


@given(lengths, plans)
def test_only_the_shortest_group_of_a_window_leaves_room(lengths, plan):
    """Groups are cut from the longest down, so all but the last of a window are full."""
    plan = PlanSettings(
        tokens_per_batch=plan.tokens_per_batch,
        max_batch_size=plan.max_batch_size,
        rows_per_unit=10_000,
        window=plan.window,
    )
    units = [unit for unit in plan_units(samples_of(lengths), plan) if unit.bucket]
    for first in range(0, len(lengths), plan.window):
        window = [unit for unit in units if unit.samples[0] // plan.window == first // plan.window]
        buckets = [unit.bucket for unit in window]
        assert buckets == sorted(buckets, reverse=True)
        for unit in window[:-1]:
            assert len(unit.samples) % plan.batch_size(unit.bucket) == 0


@settings(max_examples=200)
@given(lengths, plans, st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_every_sample_is_committed_once_through_kills_and_restarts(
    lengths, plan, processes, devices, seed, data
):
    """Processes die at random batches; the next attempt has another number of them."""
    chance = random.Random(seed)
    units = list(plan_units(samples_of(lengths), plan))
    committed: dict[int, tuple[int, ...]] = {}  # stands in for the commit records
    ran: list[int] = []
    for attempt in range(50):
        alive = data.draw(st.integers(1, 5)) if attempt else processes
        for process in range(alive):
            own = list(own_units(units, process, alive, set(committed)))
            missing = {unit.number: set(unit.samples) for unit in own}
            for unit in own:
                if not unit.bucket:
                    assert unit.number not in committed
                    committed[unit.number] = unit.samples
            for batch in pack_batches(own, plan, devices):
                if attempt < 40 and chance.random() < 0.3:
                    break  # killed: what is not committed is lost
                assert 0 < len(batch.rows) <= plan.batch_size(batch.bucket) * devices
                for unit, members in batch.rows:
                    assert units[unit].bucket == batch.bucket
                    assert members in units[unit].rows
                    missing[unit] -= set(members)
                    if not missing[unit]:
                        assert unit not in committed
                        committed[unit] = units[unit].samples
                        ran.extend(units[unit].samples)
        if len(committed) == len(units):
            break
    assert sorted(s for held in committed.values() for s in held) == list(range(len(lengths)))
    assert len(ran) == len(set(ran)) == sum(1 for n in lengths if n)


@given(lengths, plans, st.integers(1, 4))
def test_at_most_one_batch_of_a_bucket_has_dummy_rows(lengths, plan, devices):
    batches = list(pack_batches(plan_units(samples_of(lengths), plan), plan, devices))
    short = [b.bucket for b in batches if len(b.rows) < plan.batch_size(b.bucket) * devices]
    assert len(short) == len(set(short))


def test_the_plan_streams():
    """Units of the first window come before the second window is read."""
    plan = PlanSettings(tokens_per_batch=64, max_batch_size=4, rows_per_unit=8, window=10)
    read = []

    def stream():
        for sample in samples_of([5] * 1000):
            read.append(sample.number)
            yield sample

    next(plan_units(stream(), plan))
    assert len(read) == 10


@pytest.mark.parametrize(("tokens", "wanted"), [(1, 8), (1024, 4), (1025, 3), (4096, 1), (9999, 1)])
def test_batch_size_follows_the_token_budget(tokens, wanted):
    plan = PlanSettings(tokens_per_batch=4096, max_batch_size=8, rows_per_unit=512)
    assert plan.batch_size(bucket_length(tokens)) == wanted


def test_real_lengths_leave_little_padding():
    """A long-tailed corpus at 4,096 tokens a batch: nine tenths of what is computed is real."""
    lengths = np.random.default_rng(0).lognormal(6, 0.8, size=4096).astype(int).clip(1, 8000)
    plan = PlanSettings(tokens_per_batch=4096, max_batch_size=256, rows_per_unit=512)
    batches = list(pack_batches(plan_units(samples_of(lengths.tolist()), plan), plan, 1))
    assert padding_efficiency(batches, lengths.tolist(), plan, 1) > 0.9
