"""The fast path against its peers, in one process on the same tokens and weights.

    python -m benchmarks.throughput --tasks_file arc_tasks.json [--samples 100] [--shape 0.5B]

Prefill: the prompts of a tasks file, four layers' last tokens captured, one token predicted.
Ours as the distributed command runs them (default settings, and `--batch_size 8`), torch with
hooks in batches of eight in the file's order, padded to the longest. Real tokens per second; the
three take turns, batch by batch.

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

from benchmarks.shapes import SHAPES, write_random_checkpoint
from benchmarks.timing import measure_in_turn
from examples.make_demo import make_tokenizer
from inference.engine.engine import Engine
from inference.engine.plan import (
    SAVE_EVERY,
    Batch,
    PlannedSample,
    PlanSettings,
    pack_batches,
    padding_efficiency,
    plan_units,
)
from inference.engine.programs import GenerationSettings
from inference.inputs.samples import Sample, make_samples
from inference.inputs.tasks import read_tasks
from inference.settings.commands import DistributedSettings
from qwen_hooks import Checkpoint, QwenModelWithActivations, create_model_with_hooks, load_params
from qwen_hooks.hook_points import default_layers
from qwen_hooks.model import Params
from qwen_hooks.sharding import Layout, layout_for


class Ours:
    """The model on one device, as the distributed command lays it out."""

    def __init__(self, folder: Path, dtype: str):
        self.checkpoint = Checkpoint.open(folder)
        config = self.checkpoint.config
        self.layout: Layout = layout_for(config, (1, 1), jax.devices()[:1], 1 << 40, 4)
        self.params: Params = load_params(self.checkpoint, dtype, self.layout)
        self.layers = list(default_layers(config.num_hidden_layers))
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
        engine = Engine(
            model=self.model(layers),
            params=self.params,
            mesh=self.layout.mesh,
            generation=GenerationSettings(max_new_tokens=new_tokens),
            plan=plan,
            row_slots={batch.bucket: 1 for batch in batches},
        )
        for _ in engine.run(batches, samples):
            pass


def pack(samples: Sequence[Sample], plan: PlanSettings) -> list[Batch]:
    """The batches of a run on one device."""
    planned = [PlannedSample(number=s.number, tokens=len(s.token_ids), rows=1) for s in samples]
    return list(pack_batches(plan_units(planned, plan), plan, devices=1))


def torch_padded(model: Qwen2ForCausalLM, samples: Sequence[Sample], layers: Sequence[int]) -> None:
    """One batch with hooks on the layers, padded on the left to its longest prompt."""
    captured: list[torch.Tensor] = []

    def hook(module: object, inputs: object, output: torch.Tensor) -> None:
        captured.append(output[:, -1].clone())

    handles = [model.model.layers[layer].register_forward_hook(hook) for layer in layers]
    shape = (len(samples), max(len(s.token_ids) for s in samples))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, sample in enumerate(samples):
        ids[row, shape[1] - len(sample.token_ids) :] = sample.token_ids
        mask[row, shape[1] - len(sample.token_ids) :] = 1
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
    works: dict[str, list[Callable[[], object]]] = {}
    notes = {}
    for label, batch_size in (
        ("ours, default settings", DistributedSettings.batch_size),
        ("ours, --batch_size 8", 8),
    ):
        plan = PlanSettings(
            tokens_per_batch=DistributedSettings.tokens_per_batch,
            max_batch_size=batch_size,
            rows_per_unit=SAVE_EVERY,
        )
        batches = pack(samples, plan)
        computed = padding_efficiency(batches, lengths, plan, devices=1)
        notes[label] = f", {computed:.2f} of the computed tokens real"
        one_of_each = list({batch.bucket: batch for batch in batches}.values())
        ours.run(one_of_each, samples, plan, 1, ours.layers)  # compiles
        works[label] = [
            lambda batch=batch, plan=plan: ours.run([batch], samples, plan, 1, ours.layers)
            for batch in batches
        ]
    groups = [samples[start : start + 8] for start in range(0, len(samples), 8)]
    padded = sum(len(group) * max(len(s.token_ids) for s in group) for group in groups)
    label = "torch, padded, file's order"
    notes[label] = f", {sum(lengths) / padded:.2f} of the computed tokens real"
    torch_padded(theirs, min(groups, key=lambda g: max(len(s.token_ids) for s in g)), ours.layers)
    works[label] = [lambda g=g: torch_padded(theirs, g, ours.layers) for g in groups]
    seconds = measure_by_turns(works)
    for label, total in seconds.items():
        ratio = seconds["torch, padded, file's order"] / total
        rate = sum(lengths) / total
        print(f"{label:28} {rate:8.1f} real tokens/s, {ratio:.2f} of torch's{notes[label]}")


def measure_by_turns(works: dict[str, list[Callable[[], object]]]) -> dict[str, float]:
    """Total seconds of each list, whose parts take turns, so that all see the same machine."""
    done = dict.fromkeys(works, 0)
    seconds = dict.fromkeys(works, 0.0)
    while any(done[label] < len(parts) for label, parts in works.items()):
        label = min(works, key=lambda label: done[label] / len(works[label]))
        started = time.perf_counter()
        works[label][done[label]]()
        seconds[label] += time.perf_counter() - started
        done[label] += 1
    return seconds


def random_prompts(seed: int, tokens: int) -> np.ndarray:
    """Int32 `[8, tokens]`."""
    return np.random.default_rng(seed).integers(400, size=(8, tokens)).astype(np.int32)


def as_samples(ids: np.ndarray) -> list[Sample]:
    """Prompts `[B, S]` of which the last token is captured."""
    return [
        Sample(
            number=number,
            task_id=str(number),
            sample_idx=0,
            prompt=None,
            token_ids=tuple(row),
            positions=(len(row) - 1,),
            extra={},
        )
        for number, row in enumerate(ids.tolist())
    ]


def measure_decode(ours: Ours, theirs: Qwen2ForCausalLM, new_tokens: int, repeats: int) -> None:
    """Prints the decode table."""
    ids = random_prompts(0, 64)
    samples = as_samples(ids)
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
    samples = as_samples(random_prompts(1, 128))
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
    parts = ["capture", "decode", "prefill"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args(arguments)

    threads = torch.get_num_threads()
    print(
        f"{datetime.date.today()}, {platform.machine()}, {threads} cores, jax {jax.__version__} on"
        f" {jax.default_backend()}, torch {torch.__version__}, {options.shape}, {options.dtype}"
    )
    tokenizer = make_tokenizer()
    settings = DistributedSettings(model_path=options.shape, tasks_file=options.tasks_file)
    tasks = read_tasks(options.tasks_file)
    samples = list(make_samples(tasks, tokenizer, len(tokenizer), settings))[: options.samples]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_checkpoint(folder, SHAPES[options.shape], torch.bfloat16)
        ours = Ours(folder, options.dtype)
        dtype = getattr(torch, options.dtype)
        theirs = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    theirs.generation_config.eos_token_id = None
    if "capture" in options.parts:
        measure_capture(ours, min(32, options.new_tokens), options.repeats)
    if "decode" in options.parts:
        measure_decode(ours, theirs, options.new_tokens, max(1, options.repeats // 3))
    if "prefill" in options.parts:
        measure_prefill(ours, theirs, samples)


if __name__ == "__main__":
    main()
