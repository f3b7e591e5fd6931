"""The architectures that can be trained, by their names in settings."""

from sae.architectures.architecture import Architecture
from sae.architectures.batch_topk import BATCH_TOPK
from sae.architectures.jumprelu import JUMPRELU
from sae.architectures.matryoshka_batch_topk import MATRYOSHKA_BATCH_TOPK
from sae.architectures.standard import STANDARD
from sae.architectures.topk import TOPK

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (BATCH_TOPK, TOPK, JUMPRELU, MATRYOSHKA_BATCH_TOPK, STANDARD)
}
"""Each is one file and one line here."""

__all__ = ["ARCHITECTURES", "Architecture"]
