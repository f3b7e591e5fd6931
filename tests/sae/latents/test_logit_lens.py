"""The logit lens of `python -m sae latents`, against torch's final norm and unembedding."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sae import save
from sae.__main__ import main
from tests.oracle import load_torch, make_checkpoint
from tests.sae.autoencoders import random_autoencoder
from tests.sae.latents.described_run import HOOK, DescribedRun

TOKENS = 4


@pytest.fixture(scope="module", params=["qwen2", "gemma2"])
def folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("lens")
    make_checkpoint(folder / "model", model_type=request.param)
    width = load_torch(folder / "model").config.hidden_size
    sae = random_autoencoder("topk", d_in=width)
    save(sae, folder / "sae")
    data = DescribedRun(20)
    data.rows = np.random.default_rng(0).standard_normal((len(data.rows), width)).astype(np.float32)
    data.write(folder / "run")
    return folder


def command(folder, *flags, sae="sae", run="run") -> int:
    words = [str(folder / sae), "--activations_dir", str(folder / run), "--hook_point", HOOK]
    return main(["latents", *words, "--output_dir", str(folder / "out"), *map(str, flags)])


def test_logits_of_decoder_rows_are_torchs(folder):
    assert command(folder, "--model_path", folder / "model", "--lens_tokens", TOKENS) == 0
    model = load_torch(folder / "model")
    rows = torch.from_numpy(random_autoencoder("topk", d_in=model.config.hidden_size).W_dec)
    rows = rows / rows.pow(2).mean(-1, keepdim=True).sqrt()
    with torch.no_grad():
        logits = model.lm_head(model.model.norm(rows[None]))[0]
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = (logits if cap is None else torch.tanh(logits / cap) * cap).numpy()
    lines = [json.loads(line) for line in (folder / "out/latents.jsonl").read_text().splitlines()]
    assert len(lines) == len(logits)
    for line, of_latent in zip(lines, logits, strict=True):
        order = np.argsort(-of_latent, kind="stable")
        for end, wanted in (("top", order[:TOKENS]), ("bottom", order[::-1][:TOKENS])):
            told = line["logit_lens"][end]
            assert [one["token_id"] for one in told] == wanted.tolist()
            assert [one["logit"] for one in told] == pytest.approx(of_latent[wanted], rel=1e-3)


def test_a_model_of_another_width_or_other_weights_is_refused(folder, capsys):
    sae = random_autoencoder("topk", d_in=load_torch(folder / "model").config.hidden_size)
    sae = dataclasses.replace(sae, metadata={"weights_sha256": "a" * 64})
    save(sae, folder / "other")
    save(random_autoencoder("topk"), folder / "narrow")
    DescribedRun(20).write(folder / "narrow_run")
    model = ("--model_path", folder / "model")
    capsys.readouterr()
    assert command(folder, *model, sae="narrow", run="narrow_run") == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "narrow writes rows of width 6; leave --model_path out" in told
    assert command(folder, *model, sae="other") == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "is for rows of weights aaaaaaaaaaaa; name the model that the rows are of" in told
