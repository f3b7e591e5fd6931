"""The smoke test itself: passes where the rows are right, and fails where they are not."""

import numpy as np

from tests.tpu import smoke


def test_passes_here(capsys):
    assert smoke.main(["--platform", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("passed") == 4  # two dtypes, unrolled and scanned; the kernels are absent
    assert printed.count("not here") == 4


def test_fails_on_wrong_rows(monkeypatch, capsys):
    right = smoke.run

    def wrong(checkpoint, devices, dtype, attention, scan_layers):
        rows, tokens = right(checkpoint, devices, dtype, attention, scan_layers)
        if scan_layers:
            rows = rows + np.abs(rows).max() / 10
        return rows, tokens

    monkeypatch.setattr(smoke, "run", wrong)
    assert smoke.main(["--platform", "cpu"]) == 1
    assert capsys.readouterr().out.count("FAILED") == 2
