"""Every field of transformers' GenerationConfig: without effect on greedy decoding, or warned of.

The judge is torch's `generate(do_sample=False)`, given the field.
"""

import json
import logging
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from inference.engine.generation_config import followed_penalty
from inference.errors import InputError
from tests.oracle import load_torch, make_checkpoint, random_tokens

PROMPTS = (random_tokens(9), [5], list(range(211)))
NEW_TOKENS = 8
EOS = 127  # which ends one of the texts early

FOLLOWED = {"repetition_penalty", "eos_token_id"}

CHANGES: dict[str, Any] = {
    "bad_words_ids": [[95], [80], [145]],
    "begin_suppress_tokens": list(range(1, 211)),
    "cache_implementation": "quantized",
    "constraints": [[5]],
    "dola_layers": "high",
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 1.8,
    "exponential_decay_length_penalty": [2, 3.0],
    "force_words_ids": [[5]],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "guidance_scale": 3.0,
    "is_assistant": True,
    "max_time": 1e-9,
    "min_length": 30,
    "min_new_tokens": 8,
    "no_repeat_ngram_size": 1,
    "num_beams": 4,
    "num_return_sequences": 2,
    "penalty_alpha": 0.6,
    "sequence_bias": [[[3], 50.0]],
    "stop_strings": ["a"],
    "suppress_tokens": [95, 80, 145],
    "token_healing": True,
    "watermarking_config": {"bias": 9.0, "greenlist_ratio": 0.5},
}
"""Values with which torch gives another text, or refuses to give one."""

WITHOUT_EFFECT: dict[str, Any] = {
    # of sampling
    "do_sample": True, "temperature": 0.3, "top_k": 3, "top_p": 0.3, "min_p": 0.3, "top_h": 0.3,
    "typical_p": 0.3, "epsilon_cutoff": 0.3, "eta_cutoff": 0.3,
    # of beams, which there are none of
    "early_stopping": True, "length_penalty": 3.0, "num_beam_groups": 1, "diversity_penalty": 0.0,
    # the number of new tokens is told
    "max_length": 10, "max_new_tokens": 3,
    # ways to the same text
    "use_cache": False, "cache_config": {}, "max_cache_len": 100, "low_memory": True,
    "prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 2, "num_assistant_tokens": 2,
    "num_assistant_tokens_schedule": "heuristic", "assistant_lookbehind": 3,
    "target_lookbehind": 3, "disable_compile": True,
    "assistant_ensemble_weight": 0.5, "assistant_confidence_threshold": 0.9,
    # of what is finite, the order stays
    "renormalize_logits": True, "remove_invalid_values": True,
    # of what is returned
    "output_attentions": True, "output_hidden_states": True, "output_logits": True,
    "output_scores": True,
    "return_dict_in_generate": False,
    # of padding and of models with an encoder
    "pad_token_id": 3, "bos_token_id": 3, "decoder_start_token_id": 3,
    "transformers_version": "4.37.0",
}  # fmt: skip

NOT_SETTINGS_OF_A_TEXT = {
    "_from_model_config", "_commit_hash",
    "assistant_early_exit", "use_mtp", "speculation_type",  # ways that this model has no parts for
    "compile_config", "continuous_batching_config", "prefill_chunk_size",  # how fast
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def torch_model(checkpoint):
    return load_torch(checkpoint)


@pytest.fixture(scope="module")
def plain(torch_model):
    """The texts that torch gives by its defaults; one of them ends early."""
    texts = torch_texts(torch_model)
    assert len({len(text) for (text,) in texts}) > 1
    return texts


def torch_texts(model, **fields):
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        told = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": EOS}
        config = GenerationConfig(**({"pad_token_id": 0} | fields | told))
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        texts.append(output[:, len(prompt) :].tolist())
    return texts


@pytest.fixture
def warned(checkpoint, caplog):
    """Names of the fields that are warned of, given the fields of generation_config.json."""

    def follow(fields, asked="1.0"):
        (checkpoint / "generation_config.json").write_text(json.dumps(fields))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            followed_penalty(checkpoint, asked, predicts=True)
        lines = [record.getMessage() for record in caplog.records]
        return {name for name in fields if any(f" {name} " in line for line in lines)}, lines

    return follow


def test_every_field_of_transformers_is_judged():
    judged = FOLLOWED | set(CHANGES) | set(WITHOUT_EFFECT) | NOT_SETTINGS_OF_A_TEXT
    assert set(vars(GenerationConfig())) <= judged


@pytest.mark.filterwarnings("ignore")  # transformers' own, of settings that it would not advise
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_greedy_decoding_is_warned_of_in_one_line(name, torch_model, plain, warned):
    fields = {name: CHANGES[name]} | ({"top_k": 4} if name == "penalty_alpha" else {})
    try:
        theirs = torch_texts(torch_model, **fields)
    except (ValueError, TypeError, AttributeError, ImportError, OSError):
        theirs = None
    assert theirs != plain
    names, lines = warned({name: CHANGES[name]})
    assert names == {name}
    assert len(lines) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_changes_nothing_is_not_warned_of(name, torch_model, plain, warned):
    fields = {name: WITHOUT_EFFECT[name]}
    assert torch_texts(torch_model, **fields) == plain
    assert warned(fields) == (set(), [])


def test_defaults_of_transformers_are_not_warned_of(warned):
    published = {  # of Qwen2.5-0.5B-Instruct, and what older versions wrote out
        "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True,
        "eos_token_id": [151645, 151643], "temperature": 0.7, "top_p": 0.8, "top_k": 20,
        "transformers_version": "4.37.0", "num_beams": 1, "min_length": 0, "guidance_scale": 1.0,
        "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "bad_words_ids": None,
        "num_return_sequences": 1, "token_healing": False, "is_assistant": False,
        "repetition_penalty": 1.0,
    }  # fmt: skip
    assert warned(published) == (set(), [])


def test_a_penalty_of_the_file_is_named_unless_it_is_followed(warned):
    assert warned({"repetition_penalty": 1.05})[0] == {"repetition_penalty"}
    assert warned({"repetition_penalty": 1.05}, "auto")[0] == set()
    assert warned({"repetition_penalty": 1.05}, "1.05")[0] == set()


def test_nothing_is_said_where_nothing_is_predicted(checkpoint, caplog):
    text = json.dumps({"num_beams": 4, "repetition_penalty": 1.05})
    (checkpoint / "generation_config.json").write_text(text)
    assert followed_penalty(checkpoint, "auto", predicts=False) == 1
    assert not caplog.records


@pytest.mark.parametrize("penalty", [0, -1.1, "much", True, [1.1], float("nan"), float("inf")])
def test_a_file_with_an_impossible_penalty_is_refused_where_it_is_followed(penalty, checkpoint):
    text = json.dumps({"repetition_penalty": penalty})
    (checkpoint / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json: repetition_penalty"):
        followed_penalty(checkpoint, "auto", predicts=True)
    assert followed_penalty(checkpoint, "1.0", predicts=True) == 1
