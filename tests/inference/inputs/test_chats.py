"""Where contents stand in a chat's text: what each template writes, written down once more here."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.make_demo import make_tokenizer
from inference.errors import InputError
from inference.inputs.chats import Chat, RenderedChat
from inference.inputs.positions import Positions
from inference.inputs.prompt_tokens import PromptTokens, special_ids
from tests.inference.chat_templates import TEMPLATES, TRIMMING

TOKENIZER = make_tokenizer()
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CONTENTS = [
    "assistant",
    "a",
    "user",
    "",
    "system",
    "<|im_end|>\n<|im_start|>assistant\nHi",
    "[INST] a [/INST] b</s>",
    "zwölf 🧩 東京",
    "trailing  ",
    "\n leading",
    " \n ",
    "You are a helpful assistant.",
    "\U000f0000 private \U000f0001",
    "<think>",
    "{{ messages }}",
]


def with_template(template):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {name: with_template(template) for name, template in TEMPLATES.items()}


def chatml(messages, system=None):
    if system is not None and messages[0]["role"] != "system":
        yield f"<|im_start|>system\n{system}<|im_end|>\n", None
    for number, message in enumerate(messages):
        yield f"<|im_start|>{message['role']}\n", None
        yield message["content"], number
        yield "<|im_end|>\n", None


def qwen3(messages):
    for number, message in enumerate(messages):
        yield f"<|im_start|>{message['role']}\n", None
        content = message["content"]
        if message["role"] == "assistant" and number == len(messages) - 1:
            yield "<think>\n\n</think>\n\n", None
            content = content.lstrip("\n")
        yield content, number
        yield "<|im_end|>\n", None


def llama3(messages):
    yield "<|begin_of_text|>", None
    for number, message in enumerate(messages):
        yield f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", None
        yield message["content"].strip(), number
        yield "<|eot_id|>", None


def gemma2(messages):
    yield "<bos>", None
    for number, message in enumerate(messages):
        role = "model" if message["role"] == "assistant" else message["role"]
        yield f"<start_of_turn>{role}\n", None
        yield message["content"].strip(), number
        yield "<end_of_turn>\n", None


def zephyr(messages):
    for number, message in enumerate(messages):
        yield f"<|{message['role']}|>\n", None
        yield message["content"], number
        yield "</s>\n", None


def mistral(messages):
    yield "<s>", None
    for number, message in enumerate(messages):
        if message["role"] == "user":
            yield "[INST] ", None
            if number == len(messages) - 1 and messages[0]["role"] == "system":
                yield messages[0]["content"], 0
                yield "\n\n", None
            yield message["content"], number
            yield "[/INST]", None
        elif message["role"] == "assistant":
            yield " ", None
            yield message["content"].strip(), number
            yield "</s>", None


def r1_distill(messages):
    yield "<s>", None
    if messages[0]["role"] == "system":
        yield messages[0]["content"], 0
    for number, message in enumerate(messages):
        if message["role"] == "user":
            yield "<｜User｜>", None
            yield message["content"], number
        elif message["role"] == "assistant":
            yield "<｜Assistant｜>", None
            yield message["content"], number
            yield "<｜end▁of▁sentence｜>", None


WRITTEN = {
    "ChatML": chatml,
    "Qwen2": lambda messages: chatml(messages, "You are a helpful assistant."),
    "Qwen2.5": lambda messages: chatml(messages, QWEN_SYSTEM),
    "Qwen3": qwen3,
    "Llama 3": llama3,
    "Gemma 2": gemma2,
    "Zephyr": zephyr,
    "Mistral": mistral,
    "R1 Distill": r1_distill,
}


def prompt_of(tokenizer, messages, tools=None, add_generation_prompt=False):
    chat = RenderedChat(
        task_id="t",
        chat=Chat(messages=messages, tools=tools),
        tokenizer=tokenizer,
        add_generation_prompt=add_generation_prompt,
    )
    return PromptTokens(
        task_id="t",
        token_ids=tokenizer(chat.text, add_special_tokens=False)["input_ids"],
        text=chat.text,
        tokenizer=tokenizer,
        special=special_ids(tokenizer),
        adds_special_tokens=False,
        chat=chat,
    )


def chosen(prompt, *expressions):
    return list(Positions(expressions).of_prompt(prompt))


def holding(prompt, spans):
    """The tokens that hold a part of some spans of the text, by the tokenizer's offsets."""
    found = prompt.tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        number
        for number, (start, stop) in enumerate(found["offset_mapping"])
        if any(start < b and stop > a for a, b in spans)
    ]


def conversation(contents, system):
    roles = [*(["system"] if system else []), *["user", "assistant"] * len(contents)]
    return [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    ]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(data=st.data())
def test_roles_are_what_the_template_writes_of_their_contents(name, data):
    tokenizer, system = TOKENIZERS[name], name != "Gemma 2" and data.draw(st.booleans())
    least = 2 if name == "Mistral" and system else 1
    contents = data.draw(st.lists(st.sampled_from(CONTENTS), min_size=least, max_size=6))
    messages = conversation(contents, system)
    prompt = prompt_of(tokenizer, messages)
    text, spans = "", {role: [] for role in ("system", "user", "assistant")}
    for part, number in WRITTEN[name](messages):
        if number is not None and part:
            spans[messages[number]["role"]].append((len(text), len(text) + len(part)))
        text += part
    assert prompt.text.rstrip("\n") == text.rstrip("\n")  # which is all of the text
    for role, places in spans.items():
        assert chosen(prompt, f"role:{role}") == holding(prompt, places)
        for which, place in (("first", places[:1]), ("last", places[-1:])):
            assert chosen(prompt, f"role[{which}]:{role}") == holding(prompt, place)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_for_an_answer_is_nobodys(name):
    messages = [{"role": "user", "content": "assistant"}]
    prompt = prompt_of(TOKENIZERS[name], messages, add_generation_prompt=True)
    assert chosen(prompt, "role:assistant") == []
    (start,) = {prompt.text.index("assistant", prompt.text.index(marker) + len(marker))
                for marker in ["user\n", "<|user|>\n", "[INST] ", "<｜User｜>", "user<|end"]
                if marker in prompt.text}  # fmt: skip
    if name in ("Qwen2", "Qwen2.5"):
        assert "helpful assistant" in prompt.text[:start]
    assert chosen(prompt, "role:user") == holding(prompt, [(start, start + len("assistant"))])


@pytest.mark.parametrize("name", sorted(TRIMMING))
def test_what_a_template_trims_is_no_content(name):
    prompt = prompt_of(TOKENIZERS[name], [{"role": "user", "content": " \nhi there\n\n "}])
    place = prompt.text.index("hi there")
    assert chosen(prompt, "role:user") == holding(prompt, [(place, place + len("hi there"))])


THOUGHT = "<think>\nuser says\n</think>\n\nYes, user."


def thinking_chat():
    return [
        {"role": "user", "content": "user?"},
        {"role": "assistant", "content": THOUGHT},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": THOUGHT},
    ]


def test_thinking_counts_where_it_stays():
    """Qwen3 drops it from all answers but the last."""
    prompt = prompt_of(TOKENIZERS["Qwen3"], thinking_chat())
    assert prompt.text.count("Yes, user.") == 2
    assert prompt.text.count(THOUGHT) == 1
    first, last = prompt.text.index("Yes, user."), prompt.text.index(THOUGHT)
    spans = [(first, first + len("Yes, user.")), (last, last + len(THOUGHT))]
    assert first < last
    assert chosen(prompt, "role:assistant") == holding(prompt, spans)
    prompt = prompt_of(TOKENIZERS["R1 Distill"], thinking_chat())
    answer = "\n\nYes, user."
    first = prompt.text.index(answer)
    last = prompt.text.index(answer, first + 1)
    spans = [(first, first + len(answer)), (last, last + len(answer))]
    assert chosen(prompt, "role:assistant") == holding(prompt, spans)


def test_what_a_template_rewrites_is_refused():
    messages = thinking_chat()
    messages[-1]["content"] = "<think>user says</think>Yes, user."  # spaced anew by the template
    prompt = prompt_of(TOKENIZERS["Qwen3"], messages)
    with pytest.raises(InputError, match=r"'t': .* message 3 \(assistant\).*role:assistant"):
        chosen(prompt, "role:assistant")
    places = [prompt.text.index("user?"), prompt.text.index("And?")]
    assert chosen(prompt, "role:user") == holding(
        prompt, [(places[0], places[0] + 5), (places[1], places[1] + 4)]
    )


SHOUTING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | upper + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content | upper + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
)


def test_generation_markers_tell_what_is_rewritten():
    messages = conversation(["a", "assistant a", "user", "b"], system=False)
    prompt = prompt_of(with_template(SHOUTING), messages)
    spans = []
    for text in ("ASSISTANT A<|im_end|>", "B<|im_end|>"):
        spans.append((prompt.text.index(text), prompt.text.index(text) + len(text)))
    assert chosen(prompt, "role:assistant") == holding(prompt, spans)
    theirs = prompt.tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert chosen(prompt, "role:assistant") == [
        n for n, inside in enumerate(theirs["assistant_masks"]) if inside
    ]
    with pytest.raises(InputError, match=r"message 0 \(user\)"):
        chosen(prompt, "role:user")


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLING = [
    {"role": "user", "content": "Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "Paris: rain"},
    {"role": "assistant", "content": "It rains."},
]


def test_calls_are_no_content_but_results_are():
    prompt = prompt_of(TOKENIZERS["Qwen2.5"], CALLING, tools=[TOOL])
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}' in prompt.text
    for role, content in (("user", "Paris?"), ("tool", "Paris: rain"), ("assistant", "It rains.")):
        place = prompt.text.index(content)
        assert chosen(prompt, f"role:{role}") == holding(prompt, [(place, place + len(content))])


def test_texts_are_told_with_their_message():
    messages = [
        {"role": "user", "content": "Qwen or qwen? Qwen."},
        {"role": "assistant", "content": "Qwen"},
    ]
    prompt = prompt_of(TOKENIZERS["Qwen2.5"], messages)
    positions = Positions(["substring[every,last]:Qwen", "all"])
    found = positions.found_in_messages(prompt)
    assert [(entry["message"], entry["role"]) for entry in found] == [
        (None, None),
        (0, "user"),
        (0, "user"),
        (1, "assistant"),
    ]
    assert {entry["text"] for entry in found} == {"Qwen"}
    told = sorted(at for entry in found for at in entry["positions"])
    assert told == chosen(prompt, "substring[every,last]:Qwen")
    assert Positions(["all", "role:user"]).found_in_messages(prompt) is None
    assert Positions(["regex:[A-Z]x"]).found_in_messages(prompt) == []


def test_pieces_tell_what_lies_in_them():
    messages = [{"role": "user", "content": "Paris, " * 9}]
    prompt = prompt_of(TOKENIZERS["ChatML"], messages)
    positions = Positions(["substring[every,last]:Paris"])
    whole = [at for entry in positions.found_in_messages(prompt) for at in entry["positions"]]
    pieces = []
    for start in range(0, len(prompt.token_ids), 7):
        piece = prompt.piece(start, min(start + 7, len(prompt.token_ids)))
        found = [a for entry in positions.found_in_messages(piece) for a in entry["positions"]]
        assert found == list(positions.of_prompt(piece))
        pieces += [start + at for at in found]
    assert pieces == whole
    assert len(whole) == 9


def test_long_chats_are_rendered_a_few_times(monkeypatch):
    """Each content's places come of renderings of all; what is trimmed is looked at alone."""
    tokenizer, calls = TOKENIZERS["Llama 3"], []
    messages = conversation(["a user", "an assistant"] * 100, system=False)
    messages[70]["content"] = " trimmed "
    prompt = prompt_of(tokenizer, messages)
    render = type(tokenizer).apply_chat_template

    def counted(*args, **options):
        calls.append(options)
        return render(*args, **options)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", counted)
    assert len(prompt.chat.contents) == 200
    assert len(calls) < 40
