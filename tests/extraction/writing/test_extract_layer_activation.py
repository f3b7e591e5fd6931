"""Founding document 004's call: one layer at a time, one token or one token of B sequences."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from extraction import StoreError
from extraction.run.rows import UNKNOWN
from tests.extraction.known_rows import (
    WIDTH,
    known_values,
    make_extractor,
    read_metadata,
    read_records,
)


def keys(folder, layer=6) -> list[tuple]:
    return [(r["task_id"], r["sample_idx"], r["step"]) for r in read_records(folder, layer)]


def values(folder, layer=6) -> list[list[float]]:
    return [record["activation"].tolist() for record in read_records(folder, layer)]


def test_one_token(tmp_path):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with make_extractor(tmp_path) as extractor:
        row = known_values(1, 1)[0]
        extractor.extract_layer_activation(6, row, "task", 3, step=2, position=9, token_id=77)
    (record,) = read_records(tmp_path)
    assert record.pop("activation").tolist() == [1000, 1001, 1002, 1003]
    taken = datetime.datetime.fromisoformat(record.pop("timestamp"))
    assert before <= taken <= datetime.datetime.now(datetime.UTC)
    assert record == {
        "task_id": "task",
        "sample_idx": 3,
        "step": 2,
        "position": 9,
        "token_id": 77,
    }


def test_one_token_of_several_sequences(tmp_path):
    with make_extractor(tmp_path) as extractor:
        extractor.extract_layer_activation(
            6, known_values(0, 3), ["a", "b", "b"], [0, 0, 1], step=4, position=[7, 8, 9]
        )
    records = read_records(tmp_path)
    assert keys(tmp_path) == [("a", 0, 4), ("b", 0, 4), ("b", 1, 4)]
    assert values(tmp_path) == known_values(0, 3).tolist()
    assert [record["position"] for record in records] == [7, 8, 9]
    assert [record["token_id"] for record in records] == [UNKNOWN] * 3


@pytest.mark.parametrize("of_several", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jax_arrays_are_taken(tmp_path, dtype, of_several):
    rows = jnp.asarray(known_values(0, 2) / 7, dtype)
    with make_extractor(tmp_path) as extractor:
        if of_several:
            extractor.extract_layer_activation(6, rows, ["a", "b"], [0, 1])
        else:
            extractor.extract_layer_activation(6, rows[0], "a", jnp.int32(0))
            extractor.extract_layer_activation(6, rows[1], "b", jnp.int32(1))
    assert keys(tmp_path) == [("a", 0, 0), ("b", 1, 0)]
    assert values(tmp_path) == np.asarray(rows).astype(np.float64).tolist()


def test_rows_of_several_layers_come_together_whatever_their_order(tmp_path):
    with make_extractor(tmp_path, (6, 12), 2) as extractor:
        for layer, sample in [(12, 0), (6, 1), (6, 0), (12, 1), (12, 2), (6, 2)]:
            row = known_values(sample, 1, hook=(6, 12).index(layer))[0]
            extractor.extract_layer_activation(layer, row, "task", sample)
    assert keys(tmp_path, 6) == keys(tmp_path, 12)
    samples = [sample for _, sample, _ in keys(tmp_path)]
    assert sorted(samples) == [0, 1, 2]
    for hook, layer in enumerate((6, 12)):
        assert values(tmp_path, layer) == [known_values(s, 1, hook)[0].tolist() for s in samples]


class CountingModel:
    """Its next token is the last one plus 1; layer i of token k is [100 i + k, ...]."""

    def apply(self, params, input_ids, return_activations):
        assert return_activations
        logits = jax.nn.one_hot(input_ids + 1, 50)
        rows = jnp.broadcast_to(input_ids[..., None], (*input_ids.shape, WIDTH))
        layers = {f"layer_{i}": (rows + 100 * i).astype(jnp.float32) for i in (5, 6, 12)}
        return logits, layers


@pytest.mark.parametrize(
    ("task_id", "sample_idx", "prompts"),
    [
        ("task_abc123", 2, [[7, 3]]),
        (["task_abc123"], [2], [[7, 3]]),
        (["a", "a", "b"], [0, 1, 0], [[7, 3], [1, 20], [9, 11]]),
    ],
    ids=["one sample", "batch of one", "batch of three"],
)
def test_founding_loop_gives_a_row_for_each_step(tmp_path, task_id, sample_idx, prompts):
    model, params, max_tokens = CountingModel(), {}, 3
    generated_ids = jnp.array(prompts, jnp.int32)
    with make_extractor(tmp_path, (6, 12)) as activation_extractor:
        layers_to_extract = activation_extractor.config.layers_to_extract
        # The document's loop; only its next token gets the axis that it lacks there.
        for step in range(max_tokens):  # noqa: B007
            logits, activations = model.apply(params, generated_ids, return_activations=True)
            for layer_name, layer_activations in activations.items():
                layer_idx = int(layer_name.replace("layer_", "").replace("_norm", ""))
                if layer_idx in layers_to_extract:
                    last_token_activation = layer_activations[:, -1, :]
                    activation_extractor.extract_layer_activation(
                        layer_idx, last_token_activation, task_id, sample_idx
                    )
            next_token_id = jnp.argmax(logits[:, -1, :], axis=-1).astype(jnp.int32)
            generated_ids = jnp.concatenate([generated_ids, next_token_id[:, None]], axis=1)

    tasks, samples = (
        ([task_id], [sample_idx]) if isinstance(task_id, str) else (task_id, sample_idx)
    )
    for layer in (6, 12):
        rows = dict(zip(keys(tmp_path, layer), values(tmp_path, layer), strict=True))
        assert rows == {
            (task, sample, step): [100.0 * layer + prompt[-1] + step] * WIDTH
            for task, sample, prompt in zip(tasks, samples, prompts, strict=True)
            for step in range(3)
        }
    assert read_metadata(tmp_path)["total_samples"] == 3 * len(prompts)


@pytest.mark.parametrize("layers", [(6,), (6, 12)])
def test_steps_not_told_count_the_rows_of_a_sample_within_one_call_too(tmp_path, layers):
    with make_extractor(tmp_path, layers) as extractor:
        for layer in layers:
            extractor.extract_layer_activation(
                layer, known_values(0, 3), ["a"] * 3, [0] * 3, position=[0, 1, 2]
            )
    for layer in layers:
        assert keys(tmp_path, layer) == [("a", 0, 0), ("a", 0, 1), ("a", 0, 2)]


def test_an_array_that_the_caller_uses_again_is_copied(tmp_path):
    scratch = np.empty(WIDTH, np.float32)
    with make_extractor(tmp_path) as extractor:
        for sample in range(3):
            scratch[:] = known_values(sample, 1)[0]
            extractor.extract_layer_activation(6, scratch, "task", sample)
    assert values(tmp_path) == known_values(0, 3).tolist()


def test_a_layer_given_twice_is_refused(tmp_path):
    extractor = make_extractor(tmp_path, (6, 12))
    row = known_values(0, 1)[0]
    extractor.extract_layer_activation(6, row, "task", 0)
    with pytest.raises(StoreError, match="layer_6 was given twice"):
        extractor.extract_layer_activation(6, row, "task", 0)


def test_a_layer_that_is_not_captured_is_refused(tmp_path):
    extractor = make_extractor(tmp_path, (6, 12))
    with pytest.raises(StoreError, match="layer_idx 7 is not in this run"):
        extractor.extract_layer_activation(7, known_values(0, 1)[0], "task", 0)


def test_incomplete_rows_are_refused_at_close_and_can_be_completed(tmp_path):
    extractor = make_extractor(tmp_path, (6, 12))
    extractor.extract_layer_activation(6, known_values(0, 1)[0], "task", 0)
    with pytest.raises(StoreError, match=r"lacks.*layer_12"):
        extractor.close()
    assert list(tmp_path.iterdir()) == []
    extractor.extract_layer_activation(12, known_values(0, 1)[0], "task", 0)
    extractor.close()
    assert keys(tmp_path, 6) == keys(tmp_path, 12) == [("task", 0, 0)]


def test_a_closed_run_takes_no_layer(tmp_path):
    extractor = make_extractor(tmp_path, (6, 12))
    extractor.close()
    with pytest.raises(StoreError, match="closed"):
        extractor.extract_layer_activation(6, known_values(0, 1)[0], "task", 0)


@pytest.mark.parametrize(
    ("shape", "task_id", "sample_idx", "told"),
    [
        ((2, WIDTH), ["a"], [0], {}),
        ((2, WIDTH), ["a", "b"], [0], {}),
        ((2, WIDTH), ["a", "b"], [0, 1], {"position": [3]}),
        ((2, WIDTH), ["a", "b"], [0, 1], {"step": [0, 1, 2]}),
        ((2, WIDTH), ["a", "b"], 0, {}),
        ((2, WIDTH), "a", 0, {}),
        ((2, WIDTH), "ab", [0, 1], {}),
        ((WIDTH + 1,), "a", 0, {}),
        ((1, 2, WIDTH), ["a"], [0], {}),
        ((1, 2, WIDTH), "a", 0, {}),
        ((), "a", 0, {}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path, shape, task_id, sample_idx, told):
    extractor = make_extractor(tmp_path)
    with pytest.raises(StoreError):
        extractor.extract_layer_activation(6, np.zeros(shape), task_id, sample_idx, **told)
