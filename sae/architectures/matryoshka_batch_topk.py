"""Matryoshka BatchTopK (Bussmann et al., arXiv 2503.17547): its prefixes reconstruct too."""

from sae.architectures.architecture import Architecture

MATRYOSHKA_BATCH_TOPK = Architecture(
    name="matryoshka_batch_topk", exported_as="jumprelu", selection="batch", nested=True
)
