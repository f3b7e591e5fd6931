"""The self-check passes what is right and stops on what is not."""

import dataclasses

import numpy as np
import pytest

from inference.run_loop import SampleResult
from inference.samples import Sample
from inference.self_check import SelfCheckError, check_sample
from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from tests.oracle import load_torch, make_checkpoint, random_tokens, torch_rows


def test_torchs_rows_pass_and_a_wrong_number_does_not(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path))
    model, params = create_model_with_hooks(checkpoint.config, [1, 3]), load_params(checkpoint)
    tokens = random_tokens(12)
    _, layers = torch_rows(load_torch(tmp_path), tokens)
    sample = Sample(
        number=0, task_id="t", sample_idx=0, prompt=None, token_ids=tuple(tokens[:10]),
        positions=(4, 9), extra={},
    )  # fmt: skip
    positions = np.array([4, 9, 10, 11])  # the last generated token is never an input
    rows = {f"layer_{layer}": layers[layer][positions] for layer in (1, 3)}
    result = SampleResult(
        sample=sample, token_ids=[*tokens[10:], 5], positions=positions, rows=rows
    )
    assert 0 < check_sample(model, params, result) < 1e-5
    for wrong in (0.01 * np.abs(rows["layer_3"]).max(), np.nan, np.inf):
        spoilt = {hook: values.copy() for hook, values in rows.items()}
        spoilt["layer_3"][2, 7] += wrong
        with pytest.raises(SelfCheckError, match=r"rows of task 't', sample_idx 0 differ"):
            check_sample(model, params, dataclasses.replace(result, rows=spoilt))
