"""The one reader of safetensors headers, for checkpoints and for stored activations.

It lies below `qwen_hooks` and `extraction`, which do not import one another, and needs nothing
beyond Python: activations are read where there is no JAX, checkpoints where there is no store.
"""
