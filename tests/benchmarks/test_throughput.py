"""The throughput benchmark runs, on a tiny shape."""

import json

from benchmarks.throughput import main


def test_every_table_is_printed(demo_tasks, tmp_path, capsys):
    (tmp_path / "tasks.json").write_text(json.dumps(demo_tasks))
    main(["--tasks_file", str(tmp_path / "tasks.json"), "--samples", "2", "--shape", "tiny",
          "--new_tokens", "4", "--repeats", "1"])  # fmt: skip
    printed = capsys.readouterr().out
    for words in ("times not capturing", "torch generate", "recomputing loop", "real tokens/s"):
        assert words in printed
