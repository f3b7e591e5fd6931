"""Samples are numbered as agreed, and their tokens are what the tokenizer itself makes."""

import copy
import json

import pytest
from tokenizers.processors import TemplateProcessing

from inference.errors import InputError
from inference.inputs.arc import Augmentation, arc_prompt, augmentation
from inference.inputs.arc_grids import GRID_ENCODERS
from inference.inputs.samples import decode_text, make_samples
from inference.inputs.tasks import PromptTask

V = 512
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "zwölf 🙂\n12"}]


def text_task(prompt="x", **fields):
    return PromptTask(task_id="p", prompt=prompt, **fields)


def only_sample(task, tokenizer, settings):
    (sample,) = make_samples([task], tokenizer, V, settings)
    return sample


def chat_ids(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_numbering(arc_task, tokenizer, settings):
    tasks = [text_task(), arc_task, PromptTask(task_id="q", token_ids=(5,))]
    samples = list(make_samples(tasks, tokenizer, V, settings(predictions_per_task=3)))
    assert [sample.number for sample in samples] == list(range(8))
    assert [sample.task_id for sample in samples] == ["p", *"tttttt", "q"]
    assert [sample.sample_idx for sample in samples] == [0, *range(6), 0]
    numbers = [(sample.extra["test_index"], sample.extra["prediction"]) for sample in samples[1:7]]
    assert numbers == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("encoder", ["digits", "json"])
@pytest.mark.parametrize("style", ["chat", "plain"])
def test_arc_prompts(arc_task, tokenizer, settings, encoder, style):
    ours = settings(predictions_per_task=2, grid_encoder=encoder, prompt_style=style, random_seed=9)
    samples = list(make_samples([arc_task], tokenizer, V, ours))
    assert len(samples) == 4
    for sample in samples:
        test_index, prediction = divmod(sample.sample_idx, 2)
        change = augmentation(9, "t", test_index, prediction)
        text = arc_prompt(arc_task, test_index, GRID_ENCODERS[encoder], change)
        messages = [{"role": "user", "content": text}]
        wanted = chat_ids(tokenizer, messages) if style == "chat" else tokenizer(text)["input_ids"]
        assert list(sample.token_ids) == wanted
        assert text in (sample.prompt or "")


def test_augmentation_can_be_read_from_the_output_line(arc_task, tokenizer, settings):
    samples = make_samples([arc_task], tokenizer, V, settings(predictions_per_task=4))
    for sample in samples:
        extra = json.loads(json.dumps(dict(sample.extra)))
        colours = tuple(extra["augmentation"].pop("colours"))
        told = Augmentation(colours=colours, **extra["augmentation"])
        assert told == augmentation(0, "t", extra["test_index"], extra["prediction"])


def test_chat_ends_with_the_generation_prompt(tokenizer, settings):
    sample = only_sample(PromptTask(task_id="c", messages=CHAT), tokenizer, settings())
    assert list(sample.token_ids) == chat_ids(tokenizer, CHAT)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    assert sample.prompt == text


def test_text_is_tokenised_as_it_is(tokenizer, settings):
    sample = only_sample(text_task("zwölf 🙂<|im_end|>\n"), tokenizer, settings())
    assert sample.prompt == "zwölf 🙂<|im_end|>\n"
    assert list(sample.token_ids) == tokenizer("zwölf 🙂<|im_end|>\n")["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in sample.token_ids


def test_special_tokens_are_added_to_texts_but_not_to_chats(tokenizer, settings):
    tokenizer = copy.deepcopy(tokenizer)
    first = tokenizer.pad_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", first)]
    )
    text = only_sample(text_task("ab"), tokenizer, settings())
    assert text.token_ids[0] == first
    chat = only_sample(PromptTask(task_id="c", messages=CHAT), tokenizer, settings())
    assert first not in chat.token_ids
    assert list(chat.token_ids) == chat_ids(tokenizer, CHAT)


def test_empty_text_has_no_tokens(tokenizer, settings):
    assert only_sample(text_task(""), tokenizer, settings()).token_ids == ()


@pytest.mark.parametrize("ids", [(), (0,), (V - 1, 3, 3, 0)])
def test_token_ids_pass_through(tokenizer, settings, ids):
    task = PromptTask(task_id="i", token_ids=ids)
    without = only_sample(task, None, settings())
    assert (without.token_ids, without.prompt) == (ids, None)
    assert only_sample(task, tokenizer, settings()).token_ids == ids


def test_token_ids_are_shown_with_their_special_tokens(tokenizer, settings):
    text = "<|im_start|>zwölf<|im_end|>"
    task = PromptTask(task_id="i", token_ids=tuple(tokenizer(text)["input_ids"]))
    assert only_sample(task, tokenizer, settings()).prompt == text


@pytest.mark.parametrize("token", [V, -1, 2**40])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_unknown_token_ids_are_refused(tokenizer, settings, token, with_tokenizer):
    task = PromptTask(task_id="bad", token_ids=(1, token, 2))
    words = f"'bad', sample_idx 0: token id {token} .* vocabulary of {V}"
    with pytest.raises(InputError, match=words):
        only_sample(task, tokenizer if with_tokenizer else None, settings())


def test_tokenizer_must_not_know_more_than_the_model(tokenizer, settings):
    with pytest.raises(InputError, match="vocabulary of 1"):
        list(make_samples([text_task("zz")], tokenizer, 1, settings()))


def test_text_needs_a_tokenizer(arc_task, settings):
    for task in (text_task(), PromptTask(task_id="p", messages=CHAT), arc_task):
        with pytest.raises(InputError, match=f"'{task.task_id}' .* no tokenizer; give token_ids"):
            only_sample(task, None, settings())


def test_chat_needs_a_template(arc_task, tokenizer, settings):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    for task in (PromptTask(task_id="p", messages=CHAT), arc_task):
        with pytest.raises(InputError, match=f"'{task.task_id}' .* template.*prompt_style='plain'"):
            only_sample(task, tokenizer, settings())
    assert len(list(make_samples([arc_task], tokenizer, V, settings(prompt_style="plain")))) == 2


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{% if %}", "{{ messages[0].content + 1 }}"],
)
def test_template_that_cannot_take_a_chat(tokenizer, settings, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"'p'.* chat template"):
        only_sample(PromptTask(task_id="p", messages=CHAT), tokenizer, settings())


def test_extra_fields_pass(tokenizer, settings):
    extra = {"label": ["LOC"], "entity": {"start": 3}}
    assert only_sample(text_task(extra=extra), tokenizer, settings()).extra == extra


def test_decode_text(tokenizer):
    ids = tokenizer("zwölf<|im_end|>")["input_ids"]
    assert decode_text(tokenizer, ids) == "zwölf"
    assert decode_text(tokenizer, ids, skip_special_tokens=False) == "zwölf<|im_end|>"
    assert decode_text(tokenizer, []) == ""
    assert decode_text(None, ids) is None
