"""Reading the rows of a run: `dataset` is the public reader, the other modules serve it.

`stored_files` reads files and compares their checksums; `batch_stream`, `row_order` and
`shuffle_buffer` make shuffled batches; `frameworks` and `torch_batches` convert them.
"""
