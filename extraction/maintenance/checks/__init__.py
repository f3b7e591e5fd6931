"""The checks of `verify`, one file each.

Read in this order: `report` (the result), `records` and `metadata_file` (level 1),
`contents` (levels 2 and 3), `unique_keys` (level 3).
"""
