"""Every parameter of the model, in one table.

`PARAMETERS` says for each parameter where it lies here and in a Hugging Face checkpoint, its shape
in dimension letters, and which models have it. From it follow the names and shapes of a
checkpoint's tensors, how a mesh shards each parameter, which of them hold repeated KV heads, and
how many numbers there are.

Letters as in `model`, and two products: `NH` = N * H query features, `KH` = K * H key or value
features. Linear weights are `[in, out]` here and `[out, in]` in a checkpoint.
"""

import dataclasses
import math
import re

from qwen_hooks.config import QwenConfig

ParamPath = tuple[str, ...]

STACKED = "layers"
"""Where the parameters of scanned blocks lie, `[L, ...]` each; unrolled ones in `layers_0` ..."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tensors that old checkpoints hold; here as in transformers config.json alone decides them."""

SHARDED = {"NH": "heads", "KH": "heads", "F": "mlp", "V": "vocabulary"}
"""Which of `sharding.Layout`'s switches shards an axis over the mesh, by its letter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """A kind of parameter.

    Attributes:
        name: path here, with dots; of a block's parameter below the block.
        tensor: the tensor's name in a checkpoint, `{i}` for the block's number.
        shape: letters of the axes here.
        when: attribute of `QwenConfig` that must be true, or false after `not `; empty: always.
    """

    name: str
    tensor: str
    shape: str
    when: str = ""

    @property
    def of_block(self) -> bool:
        """Whether each block has such a parameter."""
        return "{i}" in self.tensor

    @property
    def transposed(self) -> bool:
        """Whether the tensor in the checkpoint is the transpose."""
        return self.name.endswith("kernel")

    @property
    def has_kv_heads(self) -> bool:
        """Whether the last axis holds key or value heads, which a mesh may need repeated."""
        return self.shape.endswith("KH")

    def is_in(self, config: QwenConfig) -> bool:
        """Return whether a model of this configuration has the parameter."""
        wanted, name = not self.when.startswith("not "), self.when.removeprefix("not ")
        return not name or bool(getattr(config, name)) == wanted

    def path(self, layer: int | None = None) -> ParamPath:
        """Return the path below `params` of the parameter of a block (None: of the stacked one)."""
        path = tuple(self.name.split("."))
        return (STACKED if layer is None else f"layers_{layer}", *path) if self.of_block else path

    def sizes(self, config: QwenConfig) -> tuple[int, ...]:
        """Return the shape of one parameter of the model."""
        letters = {
            "D": config.hidden_size,
            "F": config.intermediate_size,
            "H": config.head_dim,
            "KH": config.num_key_value_heads * config.head_dim,
            "NH": config.num_attention_heads * config.head_dim,
            "V": config.vocab_size,
        }
        return tuple(letters[letter] for letter in self.shape.split())


def _block(name: str, shape: str, when: str = "") -> ParameterSpec:
    tensor = f"model.layers.{{i}}.{name.replace('kernel', 'weight')}"
    return ParameterSpec(name=name, tensor=tensor, shape=shape, when=when)


PARAMETERS = (
    ParameterSpec(name="embed_tokens.weight", tensor=EMBEDDING, shape="V D"),
    _block("input_layernorm.weight", "D"),
    _block("self_attn.q_proj.kernel", "D NH"),
    _block("self_attn.q_proj.bias", "NH", "qkv_bias"),
    _block("self_attn.k_proj.kernel", "D KH"),
    _block("self_attn.k_proj.bias", "KH", "qkv_bias"),
    _block("self_attn.v_proj.kernel", "D KH"),
    _block("self_attn.v_proj.bias", "KH", "qkv_bias"),
    _block("self_attn.q_norm.weight", "H", "qk_norm"),
    _block("self_attn.k_norm.weight", "H", "qk_norm"),
    _block("self_attn.o_proj.kernel", "NH D"),
    _block("self_attn.o_proj.bias", "D", "output_bias"),
    _block("post_attention_layernorm.weight", "D"),
    _block("pre_feedforward_layernorm.weight", "D", "post_norms"),
    _block("post_feedforward_layernorm.weight", "D", "post_norms"),
    _block("mlp.gate_proj.kernel", "D F"),
    _block("mlp.gate_proj.bias", "F", "mlp_bias"),
    _block("mlp.up_proj.kernel", "D F"),
    _block("mlp.up_proj.bias", "F", "mlp_bias"),
    _block("mlp.down_proj.kernel", "F D"),
    _block("mlp.down_proj.bias", "D", "mlp_bias"),
    ParameterSpec(name="norm.weight", tensor="model.norm.weight", shape="D"),
    ParameterSpec(name="lm_head.kernel", tensor=HEAD, shape="D V", when="not tie_word_embeddings"),
)

_BY_NAME = {spec.name: spec for spec in PARAMETERS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedTensor:
    """A tensor that a checkpoint must hold.

    Attributes:
        spec: its kind.
        path: of the parameter below `params`.
        shape: in the checkpoint.
    """

    spec: ParameterSpec
    path: ParamPath
    shape: tuple[int, ...]


def parameters_of(config: QwenConfig) -> list[ParameterSpec]:
    """Return the kinds of parameters that a model has."""
    return [spec for spec in PARAMETERS if spec.is_in(config)]


def spec_of(path: ParamPath) -> ParameterSpec:
    """Return the kind of a parameter, given by its path below `params`, unrolled or stacked."""
    in_block = path[0] == STACKED or path[0].startswith("layers_")
    return _BY_NAME[".".join(path[1:] if in_block else path)]


def expected_tensors(config: QwenConfig) -> dict[str, ExpectedTensor]:
    """Return every tensor of a checkpoint of this configuration, by its Hugging Face name."""
    tensors = {}
    for spec in parameters_of(config):
        sizes = spec.sizes(config)
        for layer in range(config.num_hidden_layers) if spec.of_block else (0,):
            tensors[spec.tensor.format(i=layer)] = ExpectedTensor(
                spec=spec,
                path=spec.path(layer),
                shape=sizes[::-1] if spec.transposed else sizes,
            )
    return tensors


def params_count(config: QwenConfig, shards: dict[str, int] | None = None) -> int:
    """Return how many numbers all parameters hold together.

    Args:
        config: of the model.
        shards: parts into which `heads`, `mlp` and `vocabulary` are cut; then the count is that of
            one part, whole parameters included.
    """
    total = 0
    for spec in parameters_of(config):
        cut = [(shards or {}).get(SHARDED.get(letter, ""), 1) for letter in spec.shape.split()]
        copies = config.num_hidden_layers if spec.of_block else 1
        total += copies * math.prod(spec.sizes(config)) // math.prod(cut)
    return total


def is_ignored(name: str) -> bool:
    """Return whether a tensor may stand in a checkpoint though no parameter is made of it."""
    return COMPUTED.fullmatch(name) is not None
