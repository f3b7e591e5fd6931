"""The engine: few programs, no wait before the next batch runs, failures that are not swallowed."""

import copy
import dataclasses
import threading
from typing import ClassVar

import jax
import numpy as np
import pytest

from inference.engine.batches import by_unit, row_slots, unit_rows
from inference.engine.buckets import bucket_length
from inference.engine.commit_thread import CommitThread
from inference.engine.engine import Engine
from inference.engine.plan import PlannedSample, PlanSettings, pack_batches, plan_units
from inference.engine.programs import GenerationSettings, generate_batch
from inference.inputs.samples import Sample
from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from qwen_hooks.sharding import layout_for
from tests.compilations import count_compilations
from tests.oracle import make_checkpoint, random_tokens

PLAN = PlanSettings(tokens_per_batch=64, max_batch_size=3, rows_per_unit=6)
GENERATION = GenerationSettings(max_new_tokens=3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    checkpoint = Checkpoint.open(
        make_checkpoint(tmp_path_factory.mktemp("model"), num_hidden_layers=2)
    )
    layout = layout_for(checkpoint.config, (2, 1), jax.devices()[:2], 10**9, 4)
    model = create_model_with_hooks(checkpoint.config, [0, 1])
    return model, load_params(checkpoint, layout=layout), layout.mesh


def samples_of(lengths):
    return [
        Sample(number=i, task_id=f"t{i}", sample_idx=0, prompt=None,
               token_ids=tuple(random_tokens(n, seed=i)), positions=(n - 1,), extra={})
        for i, n in enumerate(lengths)
    ]  # fmt: skip


def planned_engine(loaded, samples, engine_type=Engine):
    model, params, mesh = loaded
    planned = [PlannedSample(number=s.number, tokens=len(s.token_ids), rows=3) for s in samples]
    units = list(plan_units(planned, PLAN))
    engine = engine_type(
        model=model,
        params=params,
        generation=GENERATION,
        mesh=mesh,
        plan=PLAN,
        row_slots=row_slots(units, samples, predicts=True),
    )
    return engine, units, list(pack_batches(units, PLAN, 2))


def test_as_many_programs_as_buckets_over_50_ragged_batches(loaded):
    lengths = np.random.default_rng(0).integers(1, 60, size=300).tolist()
    samples = samples_of(lengths)
    engine, units, batches = planned_engine(loaded, samples)
    with count_compilations(generate_batch) as compiled:
        finished = [unit for unit, _ in by_unit(engine.run(batches, samples), units)]
        programs = compiled()
    assert len(batches) >= 50
    assert len({len(batch.rows) for batch in batches}) > 1
    buckets = {batch.bucket for batch in batches}
    assert buckets <= {bucket_length(n) for n in range(1, 61)}
    assert programs == len(buckets)
    assert sorted(unit.number for unit in finished) == [unit.number for unit in units]


class _Watched:
    """An array that notes how many batches had been started when it was fetched."""

    def __init__(self, array, batch, engine):
        self.array, self.batch, self.engine = array, batch, engine

    def __array__(self, dtype=None, copy=None):
        self.engine.fetched.append((self.batch, len(self.engine.started)))
        return np.asarray(self.array, dtype)


class _WatchedEngine(Engine):
    """An engine whose results are watched: no transfer guard sees a fetch from CPU devices."""

    started: ClassVar = []
    fetched: ClassVar = []

    def start(self, batch, interventions=None):
        output = super().start(batch, interventions)
        self.started.append(batch)
        number = len(self.started)
        watched = copy.copy(output)
        for field in dataclasses.fields(watched):  # its own __init__ takes nothing but JAX's arrays
            arrays = getattr(output, field.name)
            arrays = jax.tree.map(lambda array: _Watched(array, number, self), arrays)
            object.__setattr__(watched, field.name, arrays)
        return watched


def test_a_batch_is_fetched_while_the_next_one_runs(loaded, monkeypatch):
    for name in ("started", "fetched"):
        monkeypatch.setattr(_WatchedEngine, name, [])
    samples = samples_of([5, 20, 9, 33] * 10)
    engine, _, batches = planned_engine(loaded, samples, _WatchedEngine)
    assert len(list(engine.run(batches, samples))) == len(samples)
    assert len(batches) > 3
    waited = {(batch, started) for batch, started in engine.fetched if started < len(batches)}
    assert waited == {(number, number + 1) for number in range(1, len(batches) - 1)}


def test_after_a_stop_the_batches_on_their_way_are_the_last(loaded):
    samples = samples_of([5, 20, 9, 33] * 10)
    engine, _, batches = planned_engine(loaded, samples)
    asked = iter([True] * 3 + [False])
    found = {r.sample.number for r in engine.run(batches, samples, goes_on=lambda: next(asked))}
    assert found == {n for batch in batches[:3] for _, members in batch.rows for n in members}


def test_rows_of_a_unit_come_sample_by_sample(loaded):
    samples = samples_of([5, 7, 30, 6, 31])
    engine, units, batches = planned_engine(loaded, samples)
    finished = dict(by_unit(engine.run(batches, samples), units))
    assert set(finished) == set(units)
    for unit, results in finished.items():
        block = unit_rows(results)
        assert block.task_ids.tolist() == [f"t{n}" for n in unit.samples for _ in range(3)]
        assert block.step.tolist() == [0, 1, 2] * len(unit.samples)
        for i, n in enumerate(block.task_ids):
            sample = samples[int(n[1:])]
            assert block.position[i] == len(sample.token_ids) - 1 + block.step[i]
            if block.step[i] == 0:
                assert block.token_id[i] == sample.token_ids[-1]
        assert set(block.activations) == {"layer_0", "layer_1"}


def test_a_failed_commit_stops_the_thread_and_surfaces():
    done = []

    def commit(number):
        if number == 3:
            raise OSError(28, "No space left on device")
        done.append(number)

    with pytest.raises(OSError, match="No space left"), CommitThread(commit) as commits:  # noqa: PT012
        for number in range(100):
            commits.put(number)
    assert done == [0, 1, 2]


def test_a_failed_commit_surfaces_at_the_end_too():
    def commit(number):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), CommitThread(commit) as commits:
        commits.put(1)


def test_few_items_wait_for_a_slow_commit():
    may_go_on, seen = threading.Event(), []

    def commit(number):
        may_go_on.wait(30)
        seen.append(number)

    def put_all(commits):
        for number in range(10):
            commits.put(number)
            handed_over.append(number)

    handed_over: list[int] = []
    with CommitThread(commit) as commits:
        putting = threading.Thread(target=put_all, args=(commits,))
        putting.start()
        putting.join(0.2)
        assert len(handed_over) <= 3  # one in work, two that wait
        may_go_on.set()
        putting.join(30)
    assert seen == list(range(10))
