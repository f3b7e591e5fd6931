"""One trainer's seconds per step on given rows, printed as JSON; used by `benchmarks.sae_training`.

It runs in an environment with sae-lens, dictionary-learning and eai-sparsify, without this project,
and is also how this project's own trainer is timed (`ours`), in this project's environment.
"""

# pyright: reportMissingImports=false

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"

LEARNING_RATE = 3e-4


def ours(rows: np.ndarray, options: argparse.Namespace) -> Callable[[np.ndarray], Any]:
    """Return a step of this project's trainer."""
    from sae.training.autoencoder_training import AutoencoderTraining
    from sae.training.settings import SaeSettings

    settings = SaeSettings(
        architecture=options.architecture,
        d_sae=str(options.d_sae),
        k=options.k,
        normalize="none",
        rescale_by_decoder_norm=options.architecture == "batch_topk",
    )
    training = AutoencoderTraining(
        settings.resolved(rows.shape[1]), rows.shape[1], None, options.batch_size, 10**6
    )

    def step(batch: np.ndarray) -> Any:
        training.step(batch)
        return training.metrics()["loss"]  # waits for the step

    return step


def saelens(rows: np.ndarray, options: argparse.Namespace) -> Callable[[np.ndarray], Any]:
    """Return a step of SAELens' BatchTopK trainer."""
    import torch
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=rows.shape[1], d_sae=options.d_sae, k=options.k, dtype="float32", device="cpu"
        )
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=10**9,
            device="cpu",
            autocast=False,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 10,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=0,
            n_restart_cycles=1,
            train_batch_size_samples=options.batch_size,
            dead_feature_window=1000,
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
        ),
        sae,
        iter(()),
    )

    def step(batch: np.ndarray) -> Any:
        loss = float(trainer.step(torch.from_numpy(batch)).loss.detach())
        trainer.n_training_steps += 1
        return loss

    return step


def dictionary_learning(
    rows: np.ndarray, options: argparse.Namespace
) -> Callable[[np.ndarray], Any]:
    """Return a step of dictionary_learning's BatchTopK trainer."""
    import torch
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=10**6,
        activation_dim=rows.shape[1],
        dict_size=options.d_sae,
        k=options.k,
        layer=0,
        lm_name="none",
        lr=LEARNING_RATE,
        device="cpu",
        seed=0,
        warmup_steps=0,
    )
    count = iter(range(10**6))
    return lambda batch: trainer.update(next(count), torch.from_numpy(batch))


def sparsify(rows: np.ndarray, options: argparse.Namespace) -> Callable[[np.ndarray], Any]:
    """Return a step of sparsify's TopK coder with Adam."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(
        rows.shape[1],
        SparseCoderConfig(num_latents=options.d_sae, k=options.k),
        device="cpu",
        dtype=torch.float32,
    )
    optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE)

    def step(batch: np.ndarray) -> Any:
        found = coder(torch.from_numpy(batch))
        (found.fvu + found.auxk_loss).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()
        return float(found.fvu.detach())

    return step


TRAINERS = {trainer.__name__: trainer for trainer in (ours, saelens, dictionary_learning, sparsify)}


def main() -> None:
    """Time some steps after one that warms up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("rows")
    parser.add_argument("--architecture", default="batch_topk")
    for name in ("d_sae", "k", "batch_size", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    rows = np.load(options.rows)
    step = TRAINERS[options.trainer](rows, options)
    seconds = []
    for number in range(options.steps + 1):
        begin = number * options.batch_size % (len(rows) - options.batch_size + 1)
        batch = np.ascontiguousarray(rows[begin : begin + options.batch_size])
        began = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": statistics.median(seconds[1:])}))


if __name__ == "__main__":
    main()
