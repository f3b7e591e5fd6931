"""`launch plan` asks the TPU compiler what memory the fullest batch needs; no TPU is needed."""

import json

import pytest

from inference.planner.compiled import has_compiler
from launch import plan

pytestmark = pytest.mark.skipif(not has_compiler(), reason="needs the TPU compiler: make test-tpu")


@pytest.mark.parametrize("slice_", ["v4-8", "v5e-1", "v5e-4", "v5e-64", "v5p-32", "v6e-1", "v6e-8"])
def test_of_every_generation(slice_, demo_checkpoint, demo_tasks, tmp_path):
    tasks, place = tmp_path / "tasks.json", tmp_path / "plan.json"
    tasks.write_text(json.dumps(demo_tasks), encoding="utf-8")
    flags = ["--model_path", str(demo_checkpoint), "--tasks_file", str(tasks), "--json", str(place),
             "--gcs_bucket", "gs://bucket/run", "--upload_to_cloud", "False"]  # fmt: skip
    assert plan.main([*flags, "--machine", slice_]) == 0
    found = json.loads(place.read_text())
    assert found["memory"]["params"] < found["compiled_memory"] < found["device_memory"]
