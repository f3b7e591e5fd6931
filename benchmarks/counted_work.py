"""What a pass through the model costs, counted from its shape: FLOPs of a prefill, bytes of a step.

Never from `compiled.cost_analysis()`, which counts the body of a loop once. A multiplication and an
addition are two FLOPs; norms, rotary angles, softmax and residual sums are not counted, as in
"FLOPs per token" of Kaplan et al. (arXiv 2001.08361, table 1) and in the model FLOPs utilisation
of PaLM (arXiv 2204.02311, appendix B). Unlike theirs, the causal half of attention that nobody
needs is not counted either, nor is what the last block leaves out. Dimension letters as in
`qwen_hooks.model`. Full attention; a sliding window would see fewer keys.
"""

import dataclasses

from qwen_hooks import QwenConfig
from qwen_hooks.sharding import params_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefillFlops:
    """FLOPs of prompts through the model, up to the logits of each prompt's last token.

    Attributes:
        projections: activations times the blocks' parameters.
        attention: queries times keys, and weights times values.
        unembedding: of the rows that get logits.
    """

    projections: int
    attention: int
    unembedding: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.projections + self.attention + self.unembedding


def prefill_flops(config: QwenConfig, *, batch: int, slots: int) -> PrefillFlops:
    """Work of `generate_batch` with one new token, for `batch` prompts of `slots` tokens each.

    All blocks but the last run for every token: `2 x parameters that multiply` in projections, and
    `4 x N x H` for every key that a token sees, half of the prompt's on average. The last block
    makes keys and values of every token, and the rest of the last token alone.
    """
    D, F, V, L = (
        config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    )  # fmt: skip
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    to_keys_values = 2 * D * keys
    the_rest = 2 * D * queries + 3 * D * F  # q_proj and o_proj, then gate, up and down
    tokens = batch * slots
    seen = batch * slots * (slots + 1) // 2  # token p sees p + 1 keys
    return PrefillFlops(
        projections=2 * (L * tokens * to_keys_values + ((L - 1) * tokens + batch) * the_rest),
        attention=4 * queries * ((L - 1) * seen + tokens),
        unembedding=2 * D * V * batch,
    )


def decode_bytes(config: QwenConfig, *, batch: int, slots: int, itemsize: int) -> int:
    """Bytes that a decode step reads: parameters, and a KV cache of `slots` slots a sequence.

    Every parameter is read once a step, whatever the batch. A tied embedding is the unembedding,
    and so read whole; of an untied one only the tokens' rows are. The cache is read whole, hidden
    slots too: attention masks them after it has read them.
    """
    unread = 0 if config.tie_word_embeddings else config.vocab_size - batch
    params = params_bytes(config, itemsize) - itemsize * unread * config.hidden_size
    keys = config.num_key_value_heads * config.head_dim
    return params + itemsize * 2 * config.num_hidden_layers * batch * slots * keys
