"""The measurement of `python -m sae latents` at a small size."""

from benchmarks.sae_latents import main


def test_it_prints_time_memory_and_sizes(capsys):
    main(["--rows", "2000", "--width", "16", "--d_sae", "64", "--l0", "4", "--again"])
    printed = capsys.readouterr().out
    assert "2,000 rows of width 16, 64 latents, jumprelu" in printed
    for name in ("whole command", "after the pass", "most resident memory", "latents.jsonl"):
        assert name in printed
