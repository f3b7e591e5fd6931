"""From rows to durable files.

`activation_writer` and `extractor` are the public writers, `committer` commits a unit, `finalise`
derives `metadata.json`, `upload` copies a run to its bucket, `disk_retry` retries while the disk is
full.
"""
