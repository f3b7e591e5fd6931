"""The fast path against its peers, in one process on the same tokens and weights.

    python -m benchmarks.throughput --tasks_file arc_tasks.json [--samples 100] [--shape 0.5B]

Prefill: the prompts of a tasks file, four layers' last tokens captured, one token predicted.
Ours as the distributed command runs them (default token budget, and `--batch_size 8`), torch with
hooks in batches of eight in the file's order, padded to the longest. Real tokens per second.

Decode: eight prompts, `--new_tokens` greedy tokens, the same four layers captured at every step.
Ours, torch `generate(output_hidden_states=True)`, and founding document 004's loop that runs the
whole sequence again for every token, written in JAX with one shape for all steps, so that it
compiles once.

Capture: the same with and without captured layers, in turn.
"""

import argparse
import datetime
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GenerationConfig, Qwen2ForCausalLM

from benchmarks.prefill import LAYERS
from benchmarks.shapes import SHAPES, write_random_checkpoint
from benchmarks.timing import measure_in_turn
from examples.make_demo import make_tokenizer
from inference.batch_plan import (
    Batch,
    PlannedSample,
    PlanSettings,
    pack_batches,
    padding_efficiency,
    plan_units,
)
from inference.generation import GenerationSettings, generate_batch
from inference.run_loop import place_batch
from inference.samples import Sample, make_samples
from inference.settings import DistributedSettings
from inference.tasks import read_tasks
from qwen_hooks import Checkpoint, QwenModelWithActivations, create_model_with_hooks, load_params
from qwen_hooks.model import Params
from qwen_hooks.sharding import Layout, layout_for


class Ours:
    """The model on one device, as the distributed command lays it out."""

    def __init__(self, folder: Path, dtype: str):
        self.checkpoint = Checkpoint.open(folder)
        config = self.checkpoint.config
        self.layout: Layout = layout_for(config, (1, 1), jax.devices()[:1], 1 << 40, 4)
        self.params: Params = load_params(self.checkpoint, dtype, self.layout)
        self.layers = [layer for layer in LAYERS if layer < config.num_hidden_layers]
        self.dtype = jnp.dtype(dtype)

    def model(self, layers: Sequence[int]) -> QwenModelWithActivations:
        """The model that captures some layers, or none."""
        if not layers:
            return QwenModelWithActivations(self.checkpoint.config, (), self.dtype)
        return create_model_with_hooks(self.checkpoint.config, layers, self.dtype)

    def run(
        self,
        batches: Sequence[Batch],
        samples: Sequence[Sample],
        plan: PlanSettings,
        new_tokens: int,
        layers: Sequence[int],
    ) -> None:
        """All batches, one behind the other, their rows brought to the host."""
        settings = GenerationSettings(max_new_tokens=new_tokens)
        outputs = []
        for batch in batches:
            size = plan.batch_size(batch.bucket)
            placed = place_batch(batch, samples, size, self.layout.mesh)
            output = generate_batch(
                self.model(layers), self.params, placed, settings=settings, mesh=self.layout.mesh
            )
            outputs.append(output.rows if layers else output.tokens)
        for array in outputs:
            np.asarray(array)


def pack(samples: Sequence[Sample], plan: PlanSettings) -> list[Batch]:
    """The batches of a run on one device."""
    planned = [PlannedSample(number=s.number, tokens=len(s.token_ids), rows=1) for s in samples]
    return list(pack_batches(plan_units(planned, plan), plan, devices=1))


def torch_padded(
    model: Qwen2ForCausalLM, samples: Sequence[Sample], layers: Sequence[int], batch_size: int = 8
) -> None:
    """Hooks on the layers, batches in the samples' order, padded on the left to the longest."""
    captured: list[torch.Tensor] = []

    def hook(module: object, inputs: object, output: torch.Tensor) -> None:
        captured.append(output[:, -1].clone())

    handles = [model.model.layers[layer].register_forward_hook(hook) for layer in layers]
    for start in range(0, len(samples), batch_size):
        group = samples[start : start + batch_size]
        width = max(len(s.token_ids) for s in group)
        ids, mask = np.zeros((len(group), width), np.int64), np.zeros((len(group), width), np.int64)
        for row, sample in enumerate(group):
            ids[row, width - len(sample.token_ids) :] = sample.token_ids
            mask[row, width - len(sample.token_ids) :] = 1
        with torch.inference_mode():
            model(
                torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                use_cache=False,
                logits_to_keep=1,
            )
    for handle in handles:
        handle.remove()


def torch_generate(model: Qwen2ForCausalLM, ids: np.ndarray, new_tokens: int) -> None:
    """Greedy decoding that returns the hidden states of every step."""
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    input_ids = torch.from_numpy(ids.astype(np.int64))
    with torch.inference_mode():
        model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=greedy,
        )


def recomputing_loop(
    ours: Ours, ids: np.ndarray, new_tokens: int, steps: int
) -> Callable[[], object]:
    """Founding document 004's loop; `steps` of them are run, at the full length of the last."""
    model = ours.model(ours.layers)
    width = ids.shape[1] + new_tokens

    @jax.jit
    def one_step(params: Params, tokens: jax.Array, at: jax.Array) -> tuple:
        logits, activations = model.apply(params, tokens, return_activations=True)
        rows = jnp.stack([values[:, at] for values in activations.values()])
        following = jnp.argmax(logits[:, at], axis=-1).astype(jnp.int32)
        return jax.lax.dynamic_update_index_in_dim(tokens, following, at + 1, axis=1), rows

    def run() -> None:
        tokens = jnp.zeros((len(ids), width), jnp.int32).at[:, : ids.shape[1]].set(ids)
        for step in range(steps):
            tokens, rows = one_step(ours.params, tokens, jnp.int32(ids.shape[1] - 1 + step))
            np.asarray(rows)

    return run


def measure_prefill(ours: Ours, theirs: Qwen2ForCausalLM, samples: list[Sample]) -> None:
    """Prints the prefill table."""
    lengths = [len(s.token_ids) for s in samples]
    print(f"\nprefill of {len(samples)} prompts, {sum(lengths)} tokens, longest {max(lengths)}")
    budgets = {
        "ours, default budget": PlanSettings(
            tokens_per_batch=DistributedSettings.tokens_per_batch,
            max_batch_size=DistributedSettings.batch_size,
            rows_per_unit=512,
        ),
        "ours, --batch_size 8": PlanSettings(
            tokens_per_batch=DistributedSettings.tokens_per_batch,
            max_batch_size=8,
            rows_per_unit=512,
        ),
    }
    rates = {}
    for label, plan in budgets.items():
        batches = pack(samples, plan)
        efficiency = padding_efficiency(batches, lengths, plan, devices=1)
        one_of_each = {batch.bucket: batch for batch in batches}
        ours.run(list(one_of_each.values()), samples, plan, 1, ours.layers)  # compiles
        started = time.perf_counter()
        ours.run(batches, samples, plan, 1, ours.layers)
        rates[label] = sum(lengths) / (time.perf_counter() - started)
        print(f"{label:28} {rates[label]:8.0f} real tokens/s, {efficiency:.2f} of computed real")
    torch_padded(theirs, samples[:8], ours.layers)
    started = time.perf_counter()
    torch_padded(theirs, samples, ours.layers)
    label = "torch, padded, file's order"
    rates[label] = sum(lengths) / (time.perf_counter() - started)
    print(f"{label:28} {rates[label]:8.0f} real tokens/s")
    print(f"ours / torch                 {rates['ours, default budget'] / rates[label]:8.2f}")


def measure_decode(ours: Ours, theirs: Qwen2ForCausalLM, new_tokens: int, repeats: int) -> None:
    """Prints the decode table."""
    ids = np.random.default_rng(0).integers(400, size=(8, 64)).astype(np.int32)
    samples = [
        Sample(number=i, task_id=str(i), sample_idx=0, prompt=None, token_ids=tuple(row), extra={})
        for i, row in enumerate(ids.tolist())
    ]
    plan = PlanSettings(tokens_per_batch=512, max_batch_size=8, rows_per_unit=8 * new_tokens)
    batches = pack(samples, plan)
    steps = max(1, new_tokens // 16)
    works = {
        "ours": lambda: ours.run(batches, samples, plan, new_tokens, ours.layers),
        "torch generate": lambda: torch_generate(theirs, ids, new_tokens),
        "recomputing loop": recomputing_loop(ours, ids, new_tokens, steps),
    }
    seconds = measure_in_turn(works, repeats)
    # Every step of the loop costs the same, so a sixteenth of them tells the rest.
    seconds["recomputing loop"] *= new_tokens / steps
    print(f"\ndecode, batch 8, 64 prompt tokens, {new_tokens} new tokens")
    for label, median in seconds.items():
        rate, ratio = 8 * new_tokens / median, median / seconds["ours"]
        print(f"{label:28} {rate:8.1f} tokens/s, ours is {ratio:.2f} times as fast")


def measure_capture(ours: Ours, new_tokens: int, repeats: int) -> None:
    """Prints what capturing costs."""
    ids = np.random.default_rng(1).integers(400, size=(8, 128)).tolist()
    samples = [
        Sample(number=i, task_id=str(i), sample_idx=0, prompt=None, token_ids=tuple(row), extra={})
        for i, row in enumerate(ids)
    ]
    plan = PlanSettings(tokens_per_batch=1024, max_batch_size=8, rows_per_unit=4096)
    batches = pack(samples, plan)
    print(f"\ncapturing {len(ours.layers)} layers, batch 8, 128 prompt tokens")
    for label, tokens in (("last token", 1), (f"{new_tokens} new tokens", new_tokens)):
        works: dict[str, Callable[[], object]] = {
            "with": lambda tokens=tokens: ours.run(batches, samples, plan, tokens, ours.layers),
            "without": lambda tokens=tokens: ours.run(batches, samples, plan, tokens, []),
        }
        seconds = measure_in_turn(works, repeats)
        ratio = seconds["with"] / seconds["without"]
        print(f"{label:28} {ratio:8.3f} times not capturing")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks_file", required=True)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args(arguments)

    threads = torch.get_num_threads()
    print(
        f"{datetime.date.today()}, {platform.machine()}, {threads} cores, jax {jax.__version__} on"
        f" {jax.default_backend()}, torch {torch.__version__}, {options.shape}, {options.dtype}"
    )
    tokenizer = make_tokenizer()
    settings = DistributedSettings(model_path="", tasks_file=options.tasks_file)
    tasks = read_tasks(options.tasks_file)
    samples = list(make_samples(tasks, tokenizer, len(tokenizer), settings))[: options.samples]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_checkpoint(folder, SHAPES[options.shape], torch.bfloat16)
        ours = Ours(folder, options.dtype)
        dtype = getattr(torch, options.dtype)
        theirs = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    theirs.generation_config.eos_token_id = None
    measure_capture(ours, min(32, options.new_tokens), options.repeats)
    measure_decode(ours, theirs, options.new_tokens, max(1, options.repeats // 3))
    measure_prefill(ours, theirs, samples)


if __name__ == "__main__":
    main()
