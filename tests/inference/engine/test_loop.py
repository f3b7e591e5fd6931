"""The loop: few programs, no fetch but in its thread, and failures that are not swallowed."""

import copy
import dataclasses
import threading
from typing import ClassVar

import jax
import numpy as np
import pytest

from inference.engine.buckets import bucket_length
from inference.engine.loop import Drain, Program, row_slots, run_batches, unit_rows
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


def run(loaded, samples, commit, drain_type=Drain, program=Program):
    model, params, mesh = loaded
    planned = [PlannedSample(number=s.number, tokens=len(s.token_ids), rows=3) for s in samples]
    units = list(plan_units(planned, PLAN))
    batches = list(pack_batches(units, PLAN, 2))
    run_by = program(
        model=model,
        params=params,
        generation=GENERATION,
        mesh=mesh,
        row_slots=row_slots(units, samples, predicts=True),
    )
    with drain_type({unit.number: unit for unit in units}, samples, commit) as drain:
        run_batches(run_by, batches, samples, PLAN, drain, goes_on=lambda _: True)
    return units, batches


def test_as_many_programs_as_buckets_over_50_ragged_batches(loaded):
    lengths = np.random.default_rng(0).integers(1, 60, size=300).tolist()
    committed = {}
    with count_compilations(generate_batch) as compiled:
        units, batches = run(loaded, samples_of(lengths), committed.__setitem__, _KeysByUnit)
        programs = compiled()
    assert len(batches) >= 50
    assert len({len(batch.rows) for batch in batches}) > 1
    buckets = {batch.bucket for batch in batches}
    assert buckets <= {bucket_length(n) for n in range(1, 61)}
    assert programs == len(buckets)
    assert set(committed) == {unit.number for unit in units}


class _KeysByUnit(Drain):
    """A drain that commits by unit number, as `dict.__setitem__` wants it."""

    def __init__(self, units, samples, commit):
        super().__init__(units, samples, lambda unit, results: commit(unit.number, results))


class _Watched:
    """An array that notes which thread fetches it; it can do nothing else but begin the copy."""

    def __init__(self, array, fetched_by):
        self.array, self.fetched_by = array, fetched_by

    def copy_to_host_async(self):
        self.array.copy_to_host_async()

    def __array__(self, dtype=None, copy=None):
        self.fetched_by.append(threading.current_thread())
        return np.asarray(self.array, dtype)


class _WatchedProgram(Program):
    """A program whose results are watched: no transfer guard sees a fetch from CPU devices."""

    fetched_by: ClassVar = []

    def run(self, batch, interventions=None):
        output = super().run(batch, interventions)
        watched = copy.copy(output)
        for field in dataclasses.fields(watched):  # its own __init__ takes nothing but JAX's arrays
            arrays = getattr(output, field.name)
            arrays = jax.tree.map(lambda array: _Watched(array, self.fetched_by), arrays)
            object.__setattr__(watched, field.name, arrays)
        return watched


def test_results_are_fetched_by_one_thread_that_is_not_the_dispatching_one(loaded, monkeypatch):
    monkeypatch.setattr(_WatchedProgram, "fetched_by", [])
    run(loaded, samples_of([5, 20, 9, 33]), lambda unit, results: None, program=_WatchedProgram)
    assert len(set(_WatchedProgram.fetched_by)) == 1
    assert threading.current_thread() not in _WatchedProgram.fetched_by


def test_a_failed_commit_stops_the_loop_and_surfaces(loaded):
    def commit(unit, results):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(loaded, samples_of([5] * 40), commit)


def test_rows_of_a_unit_come_sample_by_sample(loaded):
    blocks = {}

    def commit(unit, results):
        blocks[unit.number] = (unit, unit_rows(results))

    samples = samples_of([5, 7, 30, 6, 31])
    run(loaded, samples, commit)
    for unit, block in blocks.values():
        assert block.task_ids.tolist() == [f"t{n}" for n in unit.samples for _ in range(3)]
        assert block.step.tolist() == [0, 1, 2] * len(unit.samples)
        for i, n in enumerate(block.task_ids):
            sample = samples[int(n[1:])]
            assert block.position[i] == len(sample.token_ids) - 1 + block.step[i]
            if block.step[i] == 0:
                assert block.token_id[i] == sample.token_ids[-1]
        assert set(block.activations) == {"layer_0", "layer_1"}
