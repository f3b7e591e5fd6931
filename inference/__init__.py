"""Tokens in, activations out.

Read in this order: `simple_extraction_inference`, then what it uses: `settings`, `tasks`,
`samples`, `arc`, `arc_grids`, `token_choice`, `outputs`, `buckets`, `pretrained`.
"""
