"""Writes `sae_steps/*.npz`: 20 steps of SAELens' trainer in float64, for each architecture.

    python -m tests.peers.write_sae_steps

Run in the environment of `requirements-sae.txt`, by `make test-peers-sae`. Our training must come
to the same losses, weights and thresholds from the same weights on the same batches
(tests/sae/test_steps_against_saelens.py).
"""

from pathlib import Path

import numpy as np
import sae_lens
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

FOLDER = Path(__file__).parent / "sae_steps"

D_IN, D_SAE, BATCH, STEPS, K = 16, 64, 48, 20, 5
DEAD_STEPS = 3
WARM_UP, DECAY = 5, 4
LEARNING_RATE = 3e-3
NEVER_ACTIVE = 12
"""Latents that begin with a bias so low that they are dead after `DEAD_STEPS` steps."""

SETTINGS = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float64",
    "device": "cpu",
}

CASES = {
    "batch_topk": lambda: BatchTopKTrainingSAEConfig(k=K, **SETTINGS),
    "batch_topk_unscaled": lambda: BatchTopKTrainingSAEConfig(
        k=K, rescale_acts_by_decoder_norm=False, **SETTINGS
    ),
    "topk": lambda: TopKTrainingSAEConfig(k=K, **SETTINGS),
    "topk_unscaled": lambda: TopKTrainingSAEConfig(
        k=K, rescale_acts_by_decoder_norm=False, **SETTINGS
    ),
    "matryoshka_batch_topk": lambda: MatryoshkaBatchTopKTrainingSAEConfig(
        k=K, matryoshka_widths=[8, 24, D_SAE], **SETTINGS
    ),
    "jumprelu_step": lambda: JumpReLUTrainingSAEConfig(
        l0_coefficient=0.3, l0_warm_up_steps=6, jumprelu_bandwidth=0.5, **SETTINGS
    ),
    "jumprelu_quadratic": lambda: JumpReLUTrainingSAEConfig(
        l0_coefficient=0.3,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=6.0,
        jumprelu_bandwidth=0.5,
        **SETTINGS,
    ),
    "standard": lambda: StandardTrainingSAEConfig(
        l1_coefficient=0.5, l1_warm_up_steps=4, **SETTINGS
    ),
}


def weights() -> dict[str, np.ndarray]:
    """Return the weights that all cases begin with."""
    random = np.random.default_rng(1)
    b_enc = 0.1 * random.standard_normal(D_SAE)
    b_enc[:NEVER_ACTIVE] = -30.0
    return {
        "W_enc": random.standard_normal((D_IN, D_SAE)) / 4,
        "W_dec": random.standard_normal((D_SAE, D_IN)) / 3,
        "b_enc": b_enc,
        "b_dec": 0.1 * random.standard_normal(D_IN),
    }


def batches() -> np.ndarray:
    """Return the batches, `[STEPS, BATCH, D_IN]`."""
    random = np.random.default_rng(2)
    features = random.standard_normal((40, D_IN))
    active = random.random((STEPS, BATCH, 40)) < 0.12
    return (active * random.random((STEPS, BATCH, 40))) @ features + 0.3


def run(config: object) -> dict[str, np.ndarray]:
    """Return what SAELens' trainer comes to: losses of each step, final weights, thresholds."""
    sae = sae_lens.registry.get_sae_training_class(config.architecture())[0](config)
    with torch.no_grad():
        for name, values in weights().items():
            getattr(sae, name).copy_(torch.from_numpy(values))
    if hasattr(sae, "threshold"):  # kept in float32 there; the comparison is in float64
        sae.threshold = torch.nn.Parameter(sae.threshold.detach().double())
    trainer = SAETrainer(
        SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=STEPS * BATCH,
            device="cpu",
            autocast=False,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE,
            lr_scheduler_name="constant",
            lr_warm_up_steps=WARM_UP,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=DECAY,
            n_restart_cycles=1,
            train_batch_size_samples=BATCH,
            dead_feature_window=DEAD_STEPS,
            feature_sampling_window=1000,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        iter(()),
    )
    losses, dead = [], []
    for batch in batches():
        dead.append(int(trainer.dead_neurons.sum()))
        output = trainer.step(torch.from_numpy(batch))
        trainer.n_training_steps += 1
        losses.append([float(output.loss), *(float(v) for v in output.losses.values())])
    found = {name: getattr(sae, name).detach().numpy() for name in weights()}
    if hasattr(sae, "threshold"):
        found["threshold"] = sae.threshold.detach().clamp(min=0).numpy()
    if hasattr(sae, "topk_threshold"):
        found["topk_threshold"] = sae.topk_threshold.numpy()
    return found | {"losses": np.array(losses), "dead": np.array(dead)}


def main() -> None:
    """Write one file for the inputs, and one for each case."""
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "inputs.npz", batches=batches(), **weights())
    for name, config in CASES.items():
        np.savez_compressed(FOLDER / f"{name}.npz", version=sae_lens.__version__, **run(config()))
        print(name)


if __name__ == "__main__":
    main()
