"""What other libraries call and compute each value of a tiny Qwen2, for the tests of our aliases.

    make test-peers                              # are the files in values/ what they give?
    .venv-peers/bin/python -m tests.peers.write_values --write    # make them anew

It runs in an environment of its own, with the libraries of `requirements.txt` and nothing of this
project. `values/` holds the checkpoint and, for each library, every value of one prompt under the
library's own name: `[S, ...]` float32, in the axes of the library. `make test` compares what this
project computes under the same names with them. `processed.json` lists the TransformerLens names
whose value changes where TransformerLens processes the weights.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.peers.prompt import PROMPT, VALUES

CHECKPOINT = VALUES / "checkpoint"
PROCESSED = VALUES / "processed.json"
TOLERANCE = 1e-5
HAS_HOOKED_TRANSFORMER = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
"""TransformerLens 4 has the bridge alone."""

Named = dict[str, torch.Tensor]


def write_checkpoint() -> None:
    """A Qwen2 with biases and norm weights far from 0 and 1."""
    config = Qwen2Config(
        vocab_size=31,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.5 * noise)
            else:
                parameter.copy_(
                    noise if parameter.ndim == 1 else noise * 1.5 * len(noise[0]) ** -0.5
                )
    model.generation_config.eos_token_id = None
    model.save_pretrained(CHECKPOINT)
    (CHECKPOINT / "generation_config.json").unlink()


def load() -> Qwen2ForCausalLM:
    """The checkpoint, with the attention that gives its pattern."""
    return Qwen2ForCausalLM.from_pretrained(CHECKPOINT, attn_implementation="eager").eval()


def without_batch(values: dict[str, object]) -> Named:
    """Float32 tensors of the one prompt, but for scores before the softmax: masks differ."""
    found = {}
    for name, value in values.items():
        value = value[0] if isinstance(value, tuple) else value
        is_values = isinstance(value, torch.Tensor) and value.is_floating_point()
        if is_values and len(value) == 1 and not name.endswith("hook_attn_scores"):
            found[name] = value[0].detach().float().contiguous().clone()
    return found


def hugging_face() -> Named:
    """Modules' outputs by path, and under `path.input` what they were called with."""
    model, found = load(), {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: object, args: tuple, kwargs: dict, output: object) -> None:
            found[name] = output
            found[f"{name}.input"] = args[0] if args else kwargs.get("hidden_states")

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(keep(name), with_kwargs=True)
    with torch.inference_mode():
        model(torch.tensor([PROMPT]), use_cache=False)
    return without_batch(found)


def nnsight() -> Named:
    """Envoys' `.output` and `.input` by path."""
    from nnsight import TransformersModel
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(31)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0")
    model = TransformersModel(load(), tokenizer=tokenizer, task="text-generation")
    prompt = torch.tensor([PROMPT])
    with model.trace() as tracer:  # noqa: SIM117 - nnsight reads these lines one by one
        with tracer.invoke(prompt):
            cache = tracer.cache(include_inputs=True)
    found = {}
    for path in list(cache.keys()):  # its iterator is not one over the paths
        found[f"{path}.output"] = cache[path].output
        found[f"{path}.input"] = cache[path].input
    return without_batch(found)


def hooked_transformer(load_as: str = "from_pretrained_no_processing") -> Named:
    """`HookedTransformer`, which asks the hub for the config of a name that it knows."""
    from transformer_lens import HookedTransformer, loading_from_pretrained

    config = Qwen2Config.from_pretrained(CHECKPOINT)
    with mock.patch.object(
        loading_from_pretrained.AutoConfig, "from_pretrained", return_value=config
    ):
        model = getattr(HookedTransformer, load_as)(
            "Qwen/Qwen2.5-0.5B", hf_model=load(), tokenizer=None, device="cpu"
        )
    return lens_values(model)


def transformer_bridge(compatibility: bool = False) -> Named:
    """`TransformerBridge`, with its names and those of `HookedTransformer`."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        str(CHECKPOINT), hf_model=load(), tokenizer=None, device="cpu"
    )
    if compatibility:
        model.enable_compatibility_mode()
    return lens_values(model)


def lens_values(model) -> Named:
    """All that `run_with_cache` gives."""
    with torch.inference_mode():
        _, cache = model.run_with_cache(torch.tensor([PROMPT]))
    return without_batch(dict(cache.items()))


def processed() -> dict[str, list[str]]:
    """Names whose value is another one after TransformerLens processed the weights."""
    ways = {
        "TransformerBridge.enable_compatibility_mode": (
            transformer_bridge(),
            transformer_bridge(compatibility=True),
        )
    }
    if HAS_HOOKED_TRANSFORMER:
        ways["HookedTransformer.from_pretrained"] = (
            hooked_transformer(),
            hooked_transformer("from_pretrained"),
        )
    return {way: differing(*values) for way, values in ways.items()}


def differing(expected: Named, found: Named) -> list[str]:
    """Names in both of them whose shapes, or values in a row, differ."""
    return [
        name
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
        or bool((row_errors(expected[name], found[name]) > TOLERANCE).any())
    ]


def row_errors(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """max|a - b| / max|a| of each row, the last axis."""
    return (expected - found).abs().amax(-1) / expected.abs().amax(-1)


LIBRARIES: dict[str, Callable[[], Named]] = {
    "hugging_face": hugging_face,
    "nnsight": nnsight,
    "transformer_bridge": transformer_bridge,
    "hooked_transformer": hooked_transformer,
}


def libraries() -> dict[str, Callable[[], Named]]:
    """Those that are installed."""
    if HAS_HOOKED_TRANSFORMER:
        return LIBRARIES
    return {name: values for name, values in LIBRARIES.items() if name != "hooked_transformer"}


def write() -> None:
    """Writes the checkpoint and all values."""
    write_checkpoint()
    for name, values in libraries().items():
        save_file(values(), VALUES / f"{name}.safetensors")
    PROCESSED.write_text(json.dumps(processed(), indent=1) + "\n", encoding="utf-8")


def check() -> list[str]:
    """Names of the files that the libraries lack, or give other values for."""
    problems = []
    for name, values in libraries().items():
        stored, given = load_file(VALUES / f"{name}.safetensors"), values()
        found = [*sorted(stored.keys() - given.keys()), *differing(stored, given)]
        problems += [f"{name}: {value}" for value in found]
    stored = json.loads(PROCESSED.read_text(encoding="utf-8"))
    problems += [f"{way}: {names}" for way, names in processed().items() if names != stored[way]]
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files; default: check them")
    if parser.parse_args().write:
        write()
        return 0
    problems = check()
    print("\n".join(problems) or f"values/ is what {', '.join(libraries())} give")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
