"""What a run folder says of itself: rows, identity, commit records, totals, metadata.

Both writing and reading build on it. Read `rows` and `records` first.
"""
