"""BatchTopK (Bussmann et al., arXiv 2412.06410): the k B largest latents of a batch of B rows.

A running average of the smallest active latent becomes the threshold of a JumpReLU, which is what
the files hold.
"""

from sae.architectures.architecture import Architecture

BATCH_TOPK = Architecture(name="batch_topk", exported_as="jumprelu", selection="batch")
