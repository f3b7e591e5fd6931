"""What `verify` checks, each idea in a file of its own.

Read in this order: `report` (what is said at the end), `records` and `metadata_file` (level 1),
`contents` (levels 2 and 3), `unique_keys` (level 3).
"""
