"""The table of all parameters.

`PARAMETERS` holds for each parameter its path here and its name in a Hugging Face checkpoint, its
shape in dimension letters, and the condition for a model to have it. Derived from the table are the
names and shapes of a checkpoint's tensors, the sharding of each parameter on a mesh, the parameters
with repeated KV heads, and the number of parameters.

The letters are those of `model`, and two products: `NH` = N * H query features, `KH` = K * H key or
value features. Linear weights are `[in, out]` here and `[out, in]` in a checkpoint.
"""

import dataclasses
import math
import re

from qwen_hooks.config import QwenConfig

ParamPath = tuple[str, ...]

STACKED = "layers"
"""Key of the stacked parameters of scanned blocks, `[L, ...]`; others are in `layers_0`, ..."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tensors of old checkpoints that are not read: as in transformers, config.json determines them."""

SHARDED = {"NH": "heads", "KH": "heads", "F": "mlp", "V": "vocabulary"}
"""Field of `sharding.Layout` that tells whether an axis is sharded, by the axis' letter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """An entry of the table of parameters.

    Attributes:
        name: path here, with dots; for a parameter of a block, the path within the block.
        tensor: name of the tensor in a checkpoint, with `{i}` for the block's number.
        shape: letters of the axes here.
        when: attribute of `QwenConfig` that must be true, or after `not `, false; empty: all models
            have the parameter.
    """

    name: str
    tensor: str
    shape: str
    when: str = ""

    @property
    def of_block(self) -> bool:
        """Whether each block has one."""
        return "{i}" in self.tensor

    @property
    def transposed(self) -> bool:
        """Whether the checkpoint holds the transpose."""
        return self.name.endswith("kernel")

    @property
    def has_kv_heads(self) -> bool:
        """Whether the last axis holds key or value heads, which a mesh may need repeated."""
        return self.shape.endswith("KH")

    @property
    def writes_residual(self) -> bool:
        """Whether its last axis is added to the residual stream, as a norm's weight is not."""
        return self.shape.endswith(" D") or (self.shape == "D" and self.name.endswith("bias"))

    def is_in(self, config: QwenConfig) -> bool:
        """Return whether a model of this configuration has the parameter."""
        wanted, name = not self.when.startswith("not "), self.when.removeprefix("not ")
        return not name or bool(getattr(config, name)) == wanted

    def path(self, layer: int | None = None) -> ParamPath:
        """Return the path below `params`, in a block (None: of the stacked parameter)."""
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
        spec: entry of the table.
        path: path of the parameter below `params`.
        shape: shape in the checkpoint.
    """

    spec: ParameterSpec
    path: ParamPath
    shape: tuple[int, ...]


def parameters_of(config: QwenConfig) -> list[ParameterSpec]:
    """Return the entries of the table that a model has."""
    return [spec for spec in PARAMETERS if spec.is_in(config)]


def spec_of(path: ParamPath) -> ParameterSpec:
    """Return the entry of a parameter, given by its path below `params`, unrolled or stacked."""
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
    """Return the number of parameters, counting each number.

    Args:
        config: configuration of the model.
        shards: number of parts that `heads`, `mlp` and `vocabulary` are cut into; then the result
            is for one device, including the parameters that are not cut.
    """
    total = 0
    for spec in parameters_of(config):
        cut = [(shards or {}).get(SHARDED.get(letter, ""), 1) for letter in spec.shape.split()]
        copies = config.num_hidden_layers if spec.of_block else 1
        total += copies * math.prod(spec.sizes(config)) // math.prod(cut)
    return total


def is_ignored(name: str) -> bool:
    """Return whether a tensor of a checkpoint is allowed, although it is not read."""
    return COMPUTED.fullmatch(name) is not None
