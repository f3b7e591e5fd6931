"""From rows to durable files: `extractor` gives the public writer, `committer` commits a unit.

`finalise` derives metadata.json, `upload` copies a run to its bucket, `disk_retry` waits while the
disk is full.
"""
