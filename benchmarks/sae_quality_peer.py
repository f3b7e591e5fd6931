"""SAELens' side of `benchmarks.sae_quality`: synthetic rows, its trainer, its judge.

It runs in an environment with sae-lens, without this project.
"""

# pyright: reportMissingImports=false

import argparse
import json
import time

import numpy as np
import torch
from sae_batches import batches  # beside this script
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
)
from sae_lens.training.sae_trainer import SAETrainer


def synthetic_model() -> SyntheticModel:
    """Return 1,024 features in 128 dimensions, with a hierarchy and correlations."""
    return SyntheticModel(
        SyntheticModelConfig(
            num_features=1024,
            hidden_dim=128,
            firing_probability=ZipfianFiringProbabilityConfig(
                exponent=0.5, max_prob=0.4, min_prob=5e-4
            ),
            hierarchy=HierarchyConfig(
                total_root_nodes=16,
                branching_factor=4,
                max_depth=2,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
                scale_children_by_parent=True,
            ),
            orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
            correlation=LowRankCorrelationConfig(rank=8, correlation_scale=0.1),
            mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            bias=0.5,
            seed=42,
        ),
        device="cpu",
    )


def write_rows(options: argparse.Namespace) -> None:
    """Write rows of the synthetic model."""
    model = synthetic_model()
    torch.manual_seed(1)
    with torch.no_grad():
        parts = [model.sample(4096).numpy() for _ in range(-(-options.count // 4096))]
    np.save(options.rows, np.concatenate(parts)[: options.count])


def train(options: argparse.Namespace) -> None:
    """Train SAELens' BatchTopK on the batches, and save it."""
    rows = np.load(options.rows, mmap_mode="r")
    torch.manual_seed(options.seed)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=rows.shape[1], d_sae=options.d_sae, k=options.k, dtype="float32", device="cpu"
        )
    )
    settings = SAETrainerConfig(
        total_training_samples=options.steps * options.batch_size,
        device="cpu",
        autocast=False,
        lr=options.learning_rate,
        lr_end=options.learning_rate,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=options.steps // 5,
        n_restart_cycles=1,
        train_batch_size_samples=options.batch_size,
        dead_feature_window=options.dead_steps,
        feature_sampling_window=10**6,
        logger=LoggingConfig(log_to_wandb=False),
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
    )
    given = batches(rows, options.batch_size, options.steps, options.seed)
    began = time.monotonic()
    trainer = SAETrainer(settings, sae, (torch.from_numpy(batch) for batch in given))
    trainer.fit().save_inference_model(options.folder)
    dead = int(trainer.dead_neurons.sum())
    print(json.dumps({"seconds": round(time.monotonic() - began), "dead": dead}))


def judge(options: argparse.Namespace) -> None:
    """Print what SAELens finds about an autoencoder on new synthetic rows."""
    model = synthetic_model()
    sae = SAE.load_from_disk(options.folder, device="cpu")
    torch.manual_seed(99)
    with torch.no_grad():
        found = eval_sae_on_synthetic_data(
            sae,
            model.feature_dict,
            model.activation_generator,
            num_samples=20_000,
            batch_size=2048,
        )
    print(
        json.dumps(
            {
                "ev": found.explained_variance,
                "mcc": found.mcc,
                "f1": found.classification.f1_score,
                "l0": found.sae_l0,
                "dead": found.dead_latents,
            }
        )
    )


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("rows")
    command.add_argument("rows")
    command.add_argument("--count", type=int, required=True)
    command.set_defaults(run=write_rows)
    command = commands.add_parser("train")
    command.add_argument("rows")
    command.add_argument("folder")
    for name in ("d_sae", "k", "steps", "batch_size", "dead_steps", "seed"):
        command.add_argument(f"--{name}", type=int, required=True)
    command.add_argument("--learning_rate", type=float, required=True)
    command.set_defaults(run=train)
    command = commands.add_parser("judge")
    command.add_argument("folder")
    command.set_defaults(run=judge)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
