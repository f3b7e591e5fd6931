"""The self-check passes what is right and stops on what is not, whatever the padding."""

import dataclasses

import numpy as np
import pytest

from inference.engine.batches import SampleResult
from inference.engine.plan import Batch
from inference.engine.self_check import CheckPlan, SelfCheck, plan_check
from inference.errors import SelfCheckError
from inference.inputs.samples import Sample
from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from tests.oracle import load_torch, make_checkpoint, random_tokens, torch_rows

POSITIONS = np.array([4, 9, 10, 11])  # the last generated token is never an input


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A model with its parameters, and torch's rows of a sample of 10 tokens and 3 new ones."""
    folder = make_checkpoint(tmp_path_factory.mktemp("model"))
    checkpoint = Checkpoint.open(folder)
    model, params = create_model_with_hooks(checkpoint.config, [1, 3]), load_params(checkpoint)
    tokens = random_tokens(12)
    _, layers = torch_rows(load_torch(folder), tokens)
    sample = Sample(
        number=0, task_id="t", sample_idx=0, prompt=None, token_ids=tuple(tokens[:10]),
        positions=(4, 9), extra={},
    )  # fmt: skip
    rows = {f"layer_{layer}": layers[layer][POSITIONS] for layer in (1, 3)}
    result = SampleResult(
        sample=sample, token_ids=[*tokens[10:], 5], positions=POSITIONS, rows=rows
    )
    return model, params, result


def check_of(checked, rows, slots, samples=1):
    model, params, _ = checked
    plan = CheckPlan(rows=rows, samples=tuple(range(samples)), slots=slots)
    return SelfCheck(model, params, plan)


@pytest.mark.parametrize("slots", [12, 16, 160])
def test_torchs_rows_pass_and_a_wrong_number_does_not(slots, checked):
    *_, result = checked
    check = check_of(checked, rows=4, slots=slots)
    check.check(result)
    assert check.rows == 4
    assert 0 < check.largest_error < 1e-5
    for wrong in (0.01 * np.abs(result.rows["layer_3"]).max(), np.nan, np.inf):
        for row in range(4):
            spoilt = {hook: values.copy() for hook, values in result.rows.items()}
            spoilt["layer_3"][row, 7] += wrong
            with pytest.raises(SelfCheckError, match=r"rows of task 't', sample_idx 0 differ"):
                check_of(checked, rows=4, slots=slots).check(
                    dataclasses.replace(result, rows=spoilt)
                )


def test_a_wrong_number_in_the_last_row_is_found_by_one_row(checked):
    *_, result = checked
    spoilt = {hook: values.copy() for hook, values in result.rows.items()}
    spoilt["layer_1"][3, 0] += 1e-3 * np.abs(spoilt["layer_1"][3]).max()
    with pytest.raises(SelfCheckError):
        check_of(checked, rows=1, slots=16).check(dataclasses.replace(result, rows=spoilt))


@pytest.mark.parametrize(
    ("rows", "samples", "counted"),
    [(1, 1, [1]), (3, 1, [3]), (9, 1, [4]), (4, 2, [2, 4]), (5, 2, [3, 5]), (2, 2, [1, 2])],
)
def test_rows_are_counted(rows, samples, counted, checked):
    *_, result = checked
    check = check_of(checked, rows=rows, slots=16, samples=samples)
    for so_far in counted:
        check.check(result)
        assert check.rows == so_far


def test_a_sample_without_rows_leaves_them_to_the_next(checked):
    *_, result = checked
    check = check_of(checked, rows=2, slots=16, samples=2)
    none = {hook: values[:0] for hook, values in result.rows.items()}
    check.check(dataclasses.replace(result, positions=POSITIONS[:0], rows=none))
    assert check.rows == 0
    check.check(result)
    assert check.rows >= 1


def batch(bucket, *samples):
    return Batch(bucket=bucket, rows=tuple((0, (sample,)) for sample in samples))


@pytest.mark.parametrize(
    ("batches", "rows", "samples", "slots"),
    [
        ([batch(40, *range(8))], 4, 4, 40),  # several of one batch
        ([batch(40, 0, 1), batch(16, 2, 3)], 4, 4, 40),
        ([batch(40, *range(8)), batch(16, *range(8, 16))], 2, 2, 40),
        ([batch(16, 0)], 4, 1, 16),
        ([batch(16, 0)], 0, 0, 16),
        ([], 4, 0, 16),
    ],
)
def test_samples_are_chosen_all_over_the_run_and_padded_alike(batches, rows, samples, slots):
    plan = plan_check(batches, rows, max_new_tokens=1)
    assert len(set(plan.samples)) == samples
    assert plan.slots == slots
    if samples > 1:
        in_first = {member for _, members in batches[0].rows for member in members}
        assert len(batches) == 1 or not in_first.issuperset(plan.samples)


def test_the_padding_has_room_for_generated_tokens():
    assert plan_check([batch(40, 0)], 1, max_new_tokens=9).slots == 48
    assert plan_check([batch(40, 0)], 1, max_new_tokens=0).slots == 40
