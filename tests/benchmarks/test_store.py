"""The benchmark of storing measures everything, here on very little."""

from benchmarks import store

ARGUMENTS = ["--rows", "64", "--repeats", "1", "--entries", "8", "--folder"]


def test_every_part_measures_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "ROWS_OF_A_RUN", 128)
    store.main([*ARGUMENTS, str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    write, read, entries = capsys.readouterr().out.split("\n\n")[1:]
    for name in ("pickle", "safetensors", "torch.save", "np.savez", "datasets (Arrow)"):
        assert speed(write, name) > 0
        assert "of raw stream" in line_of(write, name)
    assert "of the lesser of raw stream and pickling alone" in write
    for name in ("pickle", "safetensors", "torch.load", "np.load", "datasets (Arrow)"):
        assert speed(read, name) > 0
        assert speed(read, f"readinto, {name}") > 0
        assert line_of(read, name).endswith(f"of readinto, {name}")
    assert "a run of 8 files of rows in 2 batches" in entries
    for name in ("finalising", "opening", "verify, level 1"):
        assert line_of(entries, name).endswith("MiB at most")
    assert "of one in a new folder" in entries


def line_of(table: str, name: str) -> str:
    (line,) = (line for line in table.splitlines() if line.startswith(f"{name}  "))
    return line


def speed(table: str, name: str) -> float:
    """MiB/s."""
    return float(line_of(table, name).removeprefix(name).split()[0])
