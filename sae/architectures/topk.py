"""TopK (Gao et al., arXiv 2406.04093): the k largest latents of each row."""

from sae.architectures.architecture import Architecture

TOPK = Architecture(name="topk", exported_as="topk", selection="row")
