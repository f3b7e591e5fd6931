"""The run that the campaigns break is the one that the commands make."""

import contextlib
import errno
from types import SimpleNamespace

import pytest

from extraction.interruption import StopFlag
from extraction.run import identity
from extraction.storage import file_operations
from inference import unit_run
from inference.engine.plan import Unit
from inference.engine.prepare import Prepared
from inference.engine.pretrained import Pretrained
from inference.inputs.positions import Positions
from inference.inputs.samples import Sample
from inference.settings.commands import ExtractionSettings
from inference.unit_run import UnitRun
from tests.faults import failing_operations
from tests.faults.faulty_os import FaultyOs, Operation, kinds
from tests.faults.independent_reading import files_of, read
from tests.faults.planned_run import (
    HOOK_POINTS,
    SKIPPED,
    STEPS,
    UNITS,
    PlannedRun,
    drive,
    sample_key,
    unit_lines,
    unit_rows,
)


@pytest.fixture
def operations(monkeypatch) -> list[Operation]:
    """What the store does, as it does it."""
    done: list[Operation] = []
    faulty = FaultyOs(after=done.append)
    monkeypatch.setattr(file_operations, "os", faulty)
    monkeypatch.setattr(identity, "os", faulty)
    return done


def make_unit_run(run: PlannedRun, monkeypatch) -> UnitRun:
    """A real one, whose model is only described."""
    monkeypatch.setattr(unit_run, "describe", lambda *arguments: {})
    monkeypatch.setattr(unit_run, "_fingerprint", lambda *arguments: {"units": UNITS})
    pretrained = object.__new__(Pretrained)
    for name, value in {
        "dtype": "float32",
        "tokenizer": None,
        "model": SimpleNamespace(hook_points=("layer_6", "layer_12")),
        "checkpoint": SimpleNamespace(config=SimpleNamespace(hidden_size=run.width)),
    }.items():
        object.__setattr__(pretrained, name, value)
    samples = [
        Sample(
            number=n, task_id=sample_key(n)[0], sample_idx=sample_key(n)[1], prompt="", extra={},
            token_ids=(1,), positions=(0,),
        )
        for n in range(len(STEPS))
    ]  # fmt: skip
    settings = ExtractionSettings(
        model_path="planned",
        tasks_file="none",
        output_dir=str(run.outputs),
        activations_dir=str(run.activations),
        resume=run.resume,
    )
    units = [Unit(number=n, bucket=8, samples=members) for n, members in enumerate(UNITS)]
    prepared = Prepared(
        settings=settings,
        tasks=[],
        pretrained=pretrained,
        samples=samples,
        reasons=[None] * len(samples),
        positions=Positions(["last"]),
        planned=[],
    )
    return UnitRun("planned", prepared, units)


def drive_unit_run(run: PlannedRun, monkeypatch) -> None:
    """What `simple_extraction_inference.run` does with it."""
    real = make_unit_run(run, monkeypatch)
    with contextlib.ExitStack() as stack:
        real.begin(stack)
        committed = real.committed()
        for unit in real.units:
            if unit.number not in committed:
                real.commit(unit, unit_rows(run, unit.number), unit_lines(unit.number))
        stack.close()
        real.finish(None, StopFlag())


@pytest.mark.parametrize("resumed", [False, True])
def test_it_does_what_the_commands_do(tmp_path, monkeypatch, operations, resumed):
    told = {}
    for name, work in (
        ("planned", drive),
        ("real", lambda run: drive_unit_run(run, monkeypatch)),
    ):
        run = PlannedRun(folder=tmp_path / name, refresh_after=())
        run.folder.mkdir()
        if resumed:
            work(run)
            for record in sorted(run.activations.glob("_run/commits/*.json"))[3:]:
                record.unlink()
        operations.clear()
        work(run)
        told[name] = [
            (operation.name, kind)
            for operation, kind in zip(operations, kinds(operations), strict=True)
        ]
        told[name + " content"] = read(files_of(run.folder))
    assert told["planned"] == told["real"]
    assert len(told["real"]) > 100
    planned, real = told["planned content"], told["real content"]
    assert planned.rows == real.rows
    assert planned.lines == real.lines
    assert planned.outputs == real.outputs
    assert planned.names == real.names


def test_the_end_of_a_run_outlasts_one_failure(tmp_path, monkeypatch):
    """As the planned run's does, at every operation."""
    number = 0
    while True:
        number += 1
        run = PlannedRun(folder=tmp_path / str(number))
        run.folder.mkdir()
        drive(run)
        real = make_unit_run(run, monkeypatch)
        with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
            real.begin(stack)
            faulty = FaultyOs(before=failing_operations.once(number, errno.EIO))
            patch.setattr(file_operations, "os", faulty)
            real.finish(None, StopFlag())
        assert read(files_of(run.folder)).outputs is not None
        if faulty.count < number:
            break
    assert number > 20


def test_an_independent_reading_finds_the_plan(tmp_path):
    run = PlannedRun(folder=tmp_path)
    drive(run)
    found = read(files_of(tmp_path))
    blocks = [block for unit in range(len(UNITS)) if (block := unit_rows(run, unit)) is not None]
    for hook in HOOK_POINTS:
        expected = [
            (
                str(block.task_ids[i]),
                *(int(c[i]) for c in (block.sample_idx, block.step, block.position)),
                int(block.token_id[i]),
                block.activations[hook][i].tobytes(),
            )
            for block in blocks
            for i in range(len(block))
        ]
        assert found.rows[hook] == expected
        assert len({row[-1] for row in expected}) == len(expected) == sum(STEPS)
    assert found.outputs is not None
    assert [line["task_id"] for line in found.outputs] == [
        sample_key(n)[0] for n in range(len(STEPS))
    ]
    skipped = {n for n, line in enumerate(found.outputs) if line["finish_reason"] == "skipped"}
    assert skipped == SKIPPED
    assert found.metadata is not None
    assert found.metadata["complete"]
    assert found.metadata["total_samples"] == sum(STEPS)
