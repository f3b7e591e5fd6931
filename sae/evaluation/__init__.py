"""How good autoencoders are: on rows, in the model, and as a page.

`rows` and `model` compute the figures; `run` does both for `python -m sae evaluate`; `page` shows
them beside the metrics of the training.
"""
