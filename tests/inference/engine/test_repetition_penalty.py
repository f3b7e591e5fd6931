"""Texts with a repetition penalty are torch's, in every loop and on every mesh."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from inference import distributed_inference_with_activations as distributed
from inference import simple_extraction_inference as simple
from inference.captures import capture
from inference.engine.language_model import load_model
from inference.engine.token_choice import occurring_tokens, penalise_repetition, with_tokens
from tests.inference.whole_runs import SMALL_BATCHES, STOP, read_run
from tests.oracle import load_torch

PENALTIES = (1.05, 1.1, 1.3, 0.8)
NEW_TOKENS = 12


def repetitive_prompt(length, seed):
    """A prompt of few distinct tokens, most of them several times."""
    generator = np.random.default_rng(seed)
    few = generator.integers(208, size=6)
    return generator.choice(few, size=length).tolist()


PROMPTS = [repetitive_prompt(n, seed=n) for n in (1, 2, 5, 16, 17, 33, 60)]


def torch_texts(checkpoint, penalty):
    model = load_torch(checkpoint)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
            repetition_penalty=penalty, max_new_tokens=NEW_TOKENS,
        )  # fmt: skip
        texts.append(output[0, len(prompt) :].tolist())
    return texts


@pytest.fixture(scope="module")
def wanted(run_checkpoint):
    """The texts of torch by penalty; no two penalties give the same."""
    texts = {penalty: torch_texts(run_checkpoint, penalty) for penalty in (1.0, *PENALTIES)}
    assert len({str(of_penalty) for of_penalty in texts.values()}) == len(texts)
    return texts


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks.json"
    path.write_text(
        json.dumps([{"task_id": str(i), "token_ids": p} for i, p in enumerate(PROMPTS)])
    )
    return path


def run(command, folder, checkpoint, tasks_file, *flags):
    return command.main(
        ["--model_path", str(checkpoint), "--tasks_file", str(tasks_file),
         "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
         "--max_new_tokens", str(NEW_TOKENS), *flags]
    )  # fmt: skip


def texts_of(folder):
    return [line["generated_token_ids"] for line in read_run(folder)[0]]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_simple_command_gives_torchs_texts(
    penalty, wanted, run_checkpoint, tasks_file, tmp_path
):
    flags = ["--repetition_penalty", str(penalty)]
    assert run(simple, tmp_path, run_checkpoint, tasks_file, *flags) == 0
    assert texts_of(tmp_path) == wanted[penalty]


@pytest.mark.parametrize(
    ("mesh", "penalty"), [("8,1", 1.05), ("4,2", 1.1), ("2,4", 1.3), ("1,8", 0.8)]
)
def test_every_mesh_gives_torchs_texts(mesh, penalty, wanted, run_checkpoint, tasks_file, tmp_path):
    flags = [*SMALL_BATCHES, "--mesh_shape", mesh, "--repetition_penalty", str(penalty)]
    assert run(distributed, tmp_path, run_checkpoint, tasks_file, *flags) == 0
    assert texts_of(tmp_path) == wanted[penalty]


def test_capture_gives_torchs_texts(wanted, run_checkpoint):
    model = load_model(str(run_checkpoint), mesh_shape=(8, 1))
    captured = capture(
        model, PROMPTS[:4], ["layer_3"], max_new_tokens=NEW_TOKENS, repetition_penalty=1.3
    )
    assert [list(text) for text in captured.generated] == wanted[1.3][:4] != wanted[1.0][:4]


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_auto_follows_the_file_that_transformers_follows(
    file, wanted, run_checkpoint, tasks_file, tmp_path
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(run_checkpoint, checkpoint)
    (checkpoint / "generation_config.json").unlink()
    fields = json.loads((checkpoint / file).read_text()) if file == "config.json" else {}
    fields |= {"eos_token_id": STOP, "repetition_penalty": 1.3}
    (checkpoint / file).write_text(json.dumps(fields))
    model = load_torch(checkpoint)
    assert model.generation_config.repetition_penalty == 1.3
    flags = ["--repetition_penalty", "auto"]
    assert run(simple, tmp_path, checkpoint, tasks_file, *flags) == 0
    assert texts_of(tmp_path) == wanted[1.3]


def test_a_run_goes_on_with_its_own_penalty_only(run_checkpoint, tasks_file, tmp_path, capsys):
    flags = [*SMALL_BATCHES, "--mesh_shape", "8,1", "--repetition_penalty"]
    assert run(distributed, tmp_path, run_checkpoint, tasks_file, *flags, "1.1") == 0
    again = ["--resume", "True"]
    assert run(distributed, tmp_path, run_checkpoint, tasks_file, *flags, "1.10", *again) == 0
    assert run(distributed, tmp_path, run_checkpoint, tasks_file, *flags, "1.2", *again) == 2
    assert "repetition_penalty" in capsys.readouterr().err


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalised_logits_are_torchs_to_the_bit(penalty):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 8, (5, 97)).astype(np.float32)
    ids = generator.integers(97, size=(5, 40)).astype(np.int32)
    ids[:, 20:30] = ids[:, :10]
    lengths = np.array([0, 1, 7, 39, 40], np.int32)
    more = generator.integers(97, size=5).astype(np.int32)
    occurring = with_tokens(occurring_tokens(ids, lengths, 97), more)
    ours = penalise_repetition(jnp.asarray(logits), occurring, penalty)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    for i, length in enumerate(lengths):
        sequence = torch.from_numpy(np.append(ids[i, :length], more[i]).astype(np.int64)[None])
        theirs = processor(sequence, torch.from_numpy(logits[i : i + 1]))  # pyright: ignore
        assert np.array_equal(np.asarray(ours)[i], theirs[0].numpy())
