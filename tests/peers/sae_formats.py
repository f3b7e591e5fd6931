"""SAELens, dictionary_learning and sparsify write autoencoders for us, and read those we wrote.

    python -m tests.peers.sae_formats          reads ours, and writes theirs

Run in the environment of `requirements-sae.txt`, by `make test-peers-sae`. `sae_values/theirs` gets
a folder for each class of theirs, with rows, latents and reconstructions in `values.npz`, for
tests/sae/files/test_peers.py. `sae_values/ours` has what `python -m tests.sae.files.write_ours`
wrote with this project's code; each must load in the library of its format, with equal latents and
reconstructions.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sae_lens
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder
from dictionary_learning.dictionary import JumpReluAutoEncoder as JumpRelu
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sparsify import SparseCoder, SparseCoderConfig

VALUES = Path(__file__).parent / "sae_values"
THEIRS, OURS = VALUES / "theirs", VALUES / "ours"
D_IN, D_OUT, D_SAE, K, ROWS = 8, 10, 16, 4, 8
NEAR = 1e-5


def randomize(module: torch.nn.Module) -> None:
    """Give every parameter values that matter, thresholds small positive ones."""
    for name, value in module.state_dict().items():
        if name == "threshold":
            value.copy_(torch.rand(value.shape) + 0.1)
        elif value.is_floating_point():
            value.copy_(torch.randn(value.shape) * (0.5 if value.ndim == 1 else 0.4))


def write(folder: Path, encode: Callable, decode: Callable, width: int = D_IN) -> None:
    """Write rows, latents and reconstructions beside the files of an autoencoder."""
    rows = torch.randn(ROWS, width)
    with torch.no_grad():
        latents = encode(rows)
        outputs = decode(latents)
    assert 0 < (latents > 0).sum() < latents.numel(), folder
    arrays = {"rows": rows, "latents": latents, "outputs": outputs}
    np.savez(folder / "values.npz", **{name: array.numpy() for name, array in arrays.items()})


def of_sae_lens() -> None:
    shared = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
    meta = sae_lens.saes.sae.SAEMetadata(
        model_name="Qwen/Qwen2.5-0.5B", hook_name="blocks.6.hook_resid_post", own_key=[1, 2]
    )
    across = shared | {"d_out": D_OUT, "apply_b_dec_to_input": False}
    cases = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig(**shared, metadata=meta)),
        "standard_folded": (
            sae_lens.StandardSAE,
            sae_lens.StandardSAEConfig(**shared, apply_b_dec_to_input=False),
        ),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig(k=K, **shared)),
        "topk_rescaled": (
            sae_lens.TopKSAE,
            sae_lens.TopKSAEConfig(k=K, rescale_acts_by_decoder_norm=True, **shared),
        ),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig(**shared, metadata=meta)),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig(**shared)),
        "transcoder": (sae_lens.Transcoder, sae_lens.TranscoderConfig(**across)),
        "jumprelu_transcoder": (
            sae_lens.JumpReLUTranscoder,
            sae_lens.JumpReLUTranscoderConfig(**across),
        ),
        "skip_transcoder": (sae_lens.SkipTranscoder, sae_lens.SkipTranscoderConfig(**across)),
    }
    for name, (kind, config) in cases.items():
        sae = kind(config)
        randomize(sae)
        folder = THEIRS / f"saelens-{name}"
        sae.save_model(folder)
        write(folder, sae.encode, sae.decode)
    half = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**shared | {"dtype": "bfloat16"}))
    randomize(half)
    half.save_model(THEIRS / "saelens-bfloat16")
    whole = sae_lens.SAE.load_from_disk(THEIRS / "saelens-bfloat16", dtype="float32")
    write(THEIRS / "saelens-bfloat16", whole.encode, whole.decode)
    trained = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(k=K, **shared))
    randomize(trained)
    trained.topk_threshold.fill_(0.7)
    folder = THEIRS / "saelens-batch_topk"
    trained.save_inference_model(folder)
    loaded = sae_lens.SAE.load_from_disk(folder)
    write(folder, loaded.encode, loaded.decode)


def of_dictionary_learning() -> None:
    for name, module in {
        "AutoEncoder": AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": AutoEncoderNew(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [2, 6, 8]),
        "JumpReluAutoEncoder": JumpRelu(D_IN, D_SAE),
        "GatedAutoEncoder": GatedAutoEncoder(D_IN, D_SAE),
    }.items():
        randomize(module)
        folder = THEIRS / f"dictionary_learning-{name}"
        folder.mkdir()
        torch.save(module.state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": name,
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "lm_name": "Qwen/Qwen2.5-0.5B",
            "layer": 12,
            "submodule_name": "resid_post_layer_12",
        }
        trainer |= {"k": K} if hasattr(module, "k") else {}
        config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        write(folder, module.encode, module.decode)


def sparse_encode(coder: SparseCoder, rows: torch.Tensor) -> torch.Tensor:
    values, indices, _ = coder.encode(rows)
    return torch.zeros(len(rows), coder.num_latents).scatter(1, indices, values)


def sparse_decode(coder: SparseCoder, latents: torch.Tensor) -> torch.Tensor:
    return coder.decode(*latents.topk(coder.cfg.k))


def of_sparsify() -> None:
    for name, fields in {
        "sae": {},
        "transcoder": {"transcode": True},
        "skip_transcoder": {"transcode": True, "skip_connection": True},
        "groupmax": {"activation": "groupmax"},
    }.items():
        coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, **fields))
        randomize(coder)
        folder = THEIRS / f"sparsify-{name}" / "layers.12.mlp"
        coder.save_to_disk(folder)
        write(
            folder,
            lambda rows, coder=coder: sparse_encode(coder, rows),
            lambda latents, coder=coder: sparse_decode(coder, latents),
        )


def loaded(folder: Path) -> tuple[Callable, Callable]:
    """An autoencoder of ours in the library of its format."""
    library = folder.name.partition("-")[0]
    if library == "saelens":
        sae = sae_lens.SAE.load_from_disk(folder)
        config = json.loads((folder / "cfg.json").read_text())
        for key, value in config["metadata"].items():  # it keeps what it does not know
            assert sae.cfg.metadata[key] == value, (folder, key)
        return sae.encode, sae.decode
    if library == "dictionary_learning":
        module, _ = load_dictionary(str(folder), device="cpu")
        return module.encode, module.decode
    coder = SparseCoder.load_from_disk(folder)
    return (
        lambda rows: sparse_encode(coder, rows),
        lambda latents: sparse_decode(coder, latents),
    )


def check_ours() -> int:
    """Compare ours, in their libraries, with the latents that this project's code gave."""
    folders = sorted(path.parent for path in OURS.rglob("values.npz"))
    for folder in folders:
        encode, decode = loaded(folder)
        values = np.load(folder / "values.npz")
        with torch.no_grad():
            latents = encode(torch.from_numpy(values["rows"]))
            outputs = decode(latents)
        for name, found in {"latents": latents, "outputs": outputs}.items():
            difference = np.abs(found.numpy() - values[name]).max()
            assert difference <= NEAR, f"{folder}: {name} differ by {difference}"
    return len(folders)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"{check_ours()} autoencoders of ours load there, with equal latents")
    shutil.rmtree(THEIRS, ignore_errors=True)
    THEIRS.mkdir(parents=True)
    of_sae_lens()
    of_dictionary_learning()
    of_sparsify()
    for path in THEIRS.rglob("*.json"):  # SAELens orders the keys differently each time
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1, sort_keys=True) + "\n")
    folders = sorted(path.parent for path in THEIRS.rglob("values.npz"))
    print(f"{len(folders)} of theirs written")
