"""Selectors on texts that try them; docs/positions.md has an example of each."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.make_demo import make_tokenizer
from inference.errors import InputError
from inference.inputs.position_selectors import KNOWN, SELECTORS
from inference.inputs.positions import Positions
from inference.inputs.prompt_tokens import PromptTokens, special_ids

TOKENIZER = make_tokenizer()


def prompt_of(text, **fields):
    return PromptTokens(
        task_id="t",
        token_ids=TOKENIZER(text)["input_ids"],
        text=text,
        tokenizer=TOKENIZER,
        special=special_ids(TOKENIZER),
        **fields,
    )


def chosen(text, *expressions, **fields):
    return list(Positions(expressions).of_prompt(prompt_of(text, **fields)))


def bytes_of(prompt):
    """The bytes that each token stands for, by the tokenizer's own table."""
    table = {}
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table.update({chr(byte): byte for byte in visible})
    rest = [byte for byte in range(256) if byte not in visible]
    table.update({chr(256 + number): byte for number, byte in enumerate(rest)})
    tokens = TOKENIZER.convert_ids_to_tokens(prompt.token_ids)
    return [bytes(table[character] for character in token) for token in tokens]


WORDS = [
    "Paris",
    " is",
    " 東京",
    "🧩🧩",
    "ñandú",
    "\n\n",
    " aaaa",
    "é",
    "  ",
    "x1234",
    "…",
    "ß",
    " a",
]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), st.data())
def test_a_substrings_tokens_are_those_that_hold_its_bytes(words, data):
    text = "".join(words)
    start = data.draw(st.integers(0, len(text) - 1))
    wanted = text[start : data.draw(st.integers(start + 1, len(text)))]
    prompt = prompt_of(text)
    ends, at = [], 0
    for part in bytes_of(prompt):
        ends.append((at, at + len(part)))
        at += len(part)
    assert at == len(text.encode())  # the oracle knows every byte
    expected = set()
    place = text.find(wanted)
    while place >= 0:
        first = len(text[:place].encode())
        last = first + len(wanted.encode())
        expected |= {n for n, (a, b) in enumerate(ends) if a < last and b > first}
        place = text.find(wanted, place + 1)
    assert set(Positions([f"substring:{wanted}"]).of_prompt(prompt)) == expected


def test_overlapping_occurrences_all_count():
    text = "abababa"
    assert chosen(text, "substring:aba") == list(range(len(prompt_of(text).token_ids)))
    first = chosen(text, "substring[first]:aba")
    assert first[0] == 0
    assert len(first) < len(prompt_of(text).token_ids)


def test_a_text_may_hold_colons_brackets_and_spaces():
    text = "see [note]: a,b ; not special"
    for wanted in ("[note]:", "a,b", " ; ", "not special", ":"):
        found = chosen(text, f"substring:{wanted}")
        assert wanted in TOKENIZER.decode([prompt_of(text).token_ids[n] for n in found])


def test_nothing_found_is_no_position():
    assert chosen("some text", "substring:Paris") == []
    assert chosen("some text", "regex:[0-9]+") == []
    assert chosen("some text", "regex:y*") == []
    assert chosen("", "all") == []


def test_more_than_there_are_is_all():
    tokens = len(prompt_of("a few words").token_ids)
    assert chosen("a few words", "last:1000") == list(range(tokens))
    assert chosen("a few words", "random:1000") == list(range(tokens))
    assert chosen("a few words", "substring[every,last 99]:few") == chosen(
        "a few words", "substring:few"
    )


def test_random_positions_follow_the_seed():
    text = "a text of many words, " * 30
    draws = {tuple(chosen(text, "random:5", seed=(seed, n))) for seed in (0, 1) for n in range(5)}
    assert len(draws) == 10
    assert {len(draw) for draw in draws} == {5}
    assert chosen(text, "random:5", seed=(0, 3)) == chosen(text, "random:5", seed=(0, 3))


def test_generated_tokens():
    special = special_ids(TOKENIZER)
    end = TOKENIZER.eos_token_id
    assert end in special
    tokens = [5, end, 7, 5]

    def numbers(*expressions):
        return Positions(expressions).of_generated(10, tokens, special)

    assert numbers("last") == numbers("all") == numbers("generated") == [0, 1, 2, 3]
    assert numbers("prompt") == numbers("first") == numbers("substring:a") == []
    assert numbers("generated:1:3") == numbers("generated:1:")[:2] == [1, 2]
    assert numbers("generated::2") == [0, 1]
    assert numbers("every:4") == [2]  # positions 10 to 13
    assert numbers("tokens:5") == [0, 3]
    assert numbers("all", "not special") == [0, 2, 3]
    assert numbers("not special", "not tokens:7") == [0, 3]
    assert not Positions(["prompt", "not generated"]).any_generated
    assert Positions(["prompt", "tokens:5"]).any_generated


@given(st.lists(st.sampled_from(["last:2", "every:3", "tokens:11", "substring:a", "first"])))
def test_unions_are_sets(expressions):
    text = "a, banana and a cat, " * 3
    together = set(chosen(text, *expressions, "first"))
    assert together == {0}.union(*(chosen(text, e) for e in expressions))
    without = set(chosen(text, "all", *(f"not {e}" for e in expressions)))
    everything = set(range(len(prompt_of(text).token_ids)))
    assert without == everything.difference(*(chosen(text, e) for e in expressions))


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("lasst", "is none of last, last:K"),
        ("", "is none of"),
        ("not", "is none of"),
        ("last:0", "from 1 on, not '0'"),
        ("last:-1", "from 1 on"),
        ("last:two", "'two'"),
        ("all:3", "nothing after a colon"),
        ("every", "not None"),
        ("generated:b", "from 0 on, not 'b'"),
        ("substring", "needs a text"),
        ("substring[third]:a", "takes an occurrence"),
        ("substring[first,last 0]:a", "from 1 on"),
        ("substring[first,middle]:a", "not 'middle'"),
        ("substring[first,all,all]:a", "takes an occurrence"),
        ("regex:(", "no regular expression"),
        ("entity:Paris", "field `entity`"),
        ("role", "needs a role"),
        ("tokens:1,x", "'x'"),
        ("random", "not None"),
        ("last[first]", "nothing in brackets"),
    ],
)
def test_what_is_no_selector_is_refused(expression, reason):
    with pytest.raises(InputError) as refused:
        Positions([expression])
    assert reason in str(refused.value)
    assert "positions" in str(refused.value)


def test_what_a_prompt_does_not_have_is_told():
    ids = PromptTokens(task_id="t9", token_ids=[1, 2])
    with pytest.raises(InputError, match=r"'t9'.*fast tokenizer"):
        Positions(["substring:a"]).of_prompt(ids)
    with pytest.raises(InputError, match=r"'t'.*no field `entity`"):
        chosen("a", "entity")
    with pytest.raises(InputError, match="'t' is no chat"):
        chosen("a", "role:user")
    canonical = prompt_of("Paris").token_ids
    letters = [TOKENIZER(letter)["input_ids"][0] for letter in "Paris"]
    random.Random(0).shuffle(letters)
    assert letters != canonical
    odd = PromptTokens(task_id="t", token_ids=letters, text="Paris", tokenizer=TOKENIZER)
    with pytest.raises(InputError, match="not those that the tokenizer makes"):
        Positions(["substring:a"]).of_prompt(odd)


def test_the_flags_help_names_every_selector():
    assert all(name in KNOWN for name in SELECTORS)
