"""What is said of a run that has come to its end."""

import dataclasses
import json

from inference.engine.distributed_run import run
from inference.inputs.datasets import read_tasks_of
from inference.planner.plan import make_plan
from inference.settings.commands import DistributedSettings
from launch.finished_run import check_run, is_whole
from launch.settings import RunSettings


def test_it_is_verified_and_compared_with_its_plan(tiny_model, tiny_tasks, tmp_path):
    flags = DistributedSettings(
        model_path=str(tiny_model),
        tasks_file=str(tiny_tasks),
        layers_to_extract=[0, 1],
        max_new_tokens=1,
        self_check_rows=0,
        activations_dir=str(tmp_path / "act"),
        output_dir=str(tmp_path / "out"),
    )
    place = tmp_path / "plan.json"
    place.write_text(json.dumps(make_plan(*read_tasks_of(flags)).document()))
    settings = RunSettings(name="a-run", extraction=dataclasses.replace(flags, plan=str(place)))
    said = []
    assert check_run(settings, said.append).exit_status == 3  # there is no run yet
    assert not any("against the plan" in line for line in said)

    run(*read_tasks_of(flags))
    said.clear()
    assert check_run(settings, said.append).exit_status == 0
    heading = said.index(f"against the plan of {place}:")
    assert said[-1].startswith("verdict: good")
    size = sum(path.stat().st_size for path in (tmp_path / "act").glob("layer_*"))
    count = len(list((tmp_path / "act").glob("layer_*")))
    assert said[heading + 1 : heading + 5] == [
        "rows         40 planned, 40 found",
        "sequences    40 planned, 40 found",
        f"files        {count} planned, {count} found",
        f"bytes        {size} planned, {size} found",
    ]

    place.write_text("{}")  # without the plan the run is no less good
    said.clear()
    assert check_run(settings, said.append).exit_status == 0
    assert any(str(place) in line and "must be a file" in line for line in said)
    assert said[-1].startswith("verdict: good")
    assert is_whole(settings)
