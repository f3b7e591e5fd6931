"""The costs of hook points are counted and timed."""

import re

from benchmarks.hook_points import counted_costs, main


def test_both_tables_are_printed(capsys):
    main(["--shape", "tiny", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(?:prefill|decode) .*\de\+\d+$", printed, re.MULTILINE)) == 6
    assert re.search(r"18 hook points of layers.3, every token: [0-9.]+ times none", printed)
    assert re.search(r"all 8 layers, last token: [0-9.]+ times", printed)


def test_decoding_costs_more_than_the_prompt():
    costs = counted_costs("tiny")
    assert all(costs["decode"][key] > costs["prefill"][key] for key in costs["prefill"])
