"""Rows out of a run: `dataset` is the public reader, everything else serves it.

`stored_files` reads files with their checksums compared; `batch_stream`, `row_order` and
`shuffle_buffer` give shuffled batches; `frameworks` and `torch_batches` convert them.
"""
