"""Autoencoders in the model that a command names, on its texts."""

import logging
from collections.abc import Mapping

from extraction.progress import Progress
from inference.engine.language_model import load_model
from inference.inputs.datasets import read_inputs, with_commit
from inference.inputs.prompt_tokens import special_ids
from inference.inputs.samples import make_samples, reason_to_skip
from sae.evaluation.model import ModelFigures, Spliced, evaluate_model
from sae.evaluation.settings import EvaluateSettings

log = logging.getLogger(__name__)


def in_model_of(
    settings: EvaluateSettings, saes: Mapping[str, Spliced], progress: Progress
) -> dict[str, ModelFigures]:
    """Return what autoencoders do to the predictions of a command's model, by their names.

    Args:
        settings: settings of the command, with a model and texts.
        saes: autoencoders by name.
        progress: told about texts.

    Raises:
        InputError: the texts cannot be used, or an autoencoder does not fit the model.
        ModelError: the model cannot be used.
        StoreError: a bucket cannot be used.
    """
    if not saes:
        return {}
    assert settings.model_path is not None
    texts = with_commit(settings)
    tasks = read_inputs(texts, settings.random_seed)
    model = load_model(settings.model_path, dtype=settings.dtype, revision=settings.revision)
    config = model.config
    samples = list(
        make_samples(
            tasks,
            model.tokenizer,
            config.vocab_size,
            settings.samples(),
            config.context_length,
            progress,
        )
    )
    usable = [s for s in samples if reason_to_skip(s, config.context_length, 0) is None]
    if len(usable) < len(samples):
        log.warning(
            "%d of %d texts are empty or longer than the model's context, and are skipped",
            len(samples) - len(usable),
            len(samples),
        )
    return evaluate_model(
        model,
        saes,
        [sample.token_ids for sample in usable],
        special_ids=special_ids(model.tokenizer),
        tokens_per_batch=settings.tokens_per_batch,
        progress=progress,
    )
