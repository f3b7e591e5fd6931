"""Of every kind of tokenizer folder the ids are AutoTokenizer's, or the folder is refused."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from inference.engine.pretrained import TOKENIZER_FILES, load_tokenizer
from inference.errors import InputError
from inference.inputs.samples import make_samples
from inference.inputs.tasks import PromptTask

TEXTS = ("Grid 1 2 3", "é 你 <|im_start|>user", "", "a\n\n b")
CHAT = [{"role": "user", "content": "Say 7."}]
EMBEDDING = 512


@pytest.fixture
def folder(demo_checkpoint, tmp_path):
    """A copy of the demo's tokenizer, which a test may change."""
    for path in demo_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / path.name)
    return tmp_path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_slow_files(folder, *names):
    """The vocabulary as separate files in place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "tokenizer.json").unlink()
    if "vocab.json" in names:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    if "merges.txt" in names:
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))


def fast_alone(folder):
    (folder / "tokenizer_config.json").unlink()


def slow(folder):
    write_slow_files(folder, "vocab.json", "merges.txt")


def slow_alone(folder):
    slow(folder)
    (folder / "tokenizer_config.json").unlink()


def no_vocabulary(folder):
    (folder / "tokenizer.json").unlink()


def no_merges(folder):
    write_slow_files(folder, "vocab.json")


def merges_alone(folder):
    write_slow_files(folder, "merges.txt")


def special_tokens_alone(folder):
    edit(folder / "tokenizer.json", lambda c: c["model"].update(vocab={}, merges=[]))


def only_unknown_tokens(folder):
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def words_of_its_own(folder):
    words = {word: number for number, word in enumerate(["<unk>", "w1", "w2", "Grid"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").unlink()  # so that the class below is taken
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def a_class_that_there_is_not(folder):
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="NoTokenizer"))


def code_of_its_own(folder):
    custom = {"AutoTokenizer": ["custom.Tokenizer", None]}
    edit(folder / "tokenizer_config.json", lambda c: c.update(auto_map=custom))
    (folder / "custom.py").write_text("raise SystemExit('code of a checkpoint was run')")


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def added_tokens(folder):
    """Eleven within the embedding, and `Grid11` and `Grid12` beyond it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokens = [{"id": 501 + n, "content": f"Grid{n:02}"} | flags for n in range(13)]
    edit(folder / "tokenizer.json", lambda c: c["added_tokens"].extend(tokens))


def cut_off(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pointer_of_git_lfs(folder):
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid x")


def binary(folder):
    (folder / "tokenizer.json").write_bytes(bytes(range(256)))


def ids_that_are_texts(folder):
    vocabulary = {"vocab": {"a": "0"}}
    edit(folder / "tokenizer.json", lambda c: c["model"].update(vocabulary))


def ids_beyond_32_bits(folder):
    edit(folder / "tokenizer.json", lambda c: c["model"]["vocab"].update({"Grid": 2**40}))


def merges_of_unknown_tokens(folder):
    edit(folder / "tokenizer.json", lambda c: c["model"]["merges"].append(["Q9", "Z9"]))


def a_model_that_there_is_not(folder):
    edit(folder / "tokenizer.json", lambda c: c["model"].update(type="Abacus"))


READ = [
    fast_alone, slow, slow_alone, words_of_its_own, a_class_that_there_is_not, code_of_its_own,
    no_template, added_tokens,
]  # fmt: skip
REFUSED = [
    no_vocabulary, no_merges, merges_alone, special_tokens_alone, only_unknown_tokens, cut_off,
    pointer_of_git_lfs, binary, ids_that_are_texts, ids_beyond_32_bits, merges_of_unknown_tokens,
    a_model_that_there_is_not,
]  # fmt: skip


def ids_of(folder, settings, tasks):
    samples = make_samples(tasks, load_tokenizer(folder), EMBEDDING, settings())
    return [list(sample.token_ids) for sample in samples]


@pytest.mark.parametrize("change", READ, ids=lambda change: change.__name__)
def test_ids_are_those_of_auto_tokenizer(change, folder, settings):
    change(folder)
    try:
        judge = AutoTokenizer.from_pretrained(folder)
    except ValueError:  # transformers 5.0 does not read all that later versions do
        with pytest.raises(InputError):
            load_tokenizer(folder)
        return
    tasks = [PromptTask(task_id=str(i), prompt=text) for i, text in enumerate(TEXTS)]
    wanted = [judge(text)["input_ids"] for text in TEXTS]
    if judge.chat_template:
        tasks.append(PromptTask(task_id="chat", messages=CHAT))
        wanted.append(
            judge.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
        )
    assert ids_of(folder, settings, tasks) == wanted
    assert any(wanted)


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_folder_without_a_whole_tokenizer_is_refused_by_name(change, folder):
    change(folder)
    with pytest.raises(InputError) as refusal:
        load_tokenizer(folder)
    assert str(refusal.value).startswith(f"{folder}: the tokenizer ")
    assert "\n" not in str(refusal.value)


def test_without_any_file_of_a_tokenizer_texts_are_refused(folder, settings):
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    assert load_tokenizer(folder) is None
    with pytest.raises(InputError, match="no tokenizer"):
        ids_of(folder, settings, [PromptTask(task_id="t", prompt="Grid")])


def test_a_token_beyond_the_embedding_is_refused_with_its_sample(folder, settings):
    added_tokens(folder)
    judge = AutoTokenizer.from_pretrained(folder)
    assert judge("Say Grid12")["input_ids"][-1] == 513
    within = [PromptTask(task_id="t", prompt="Say Grid10")]
    assert ids_of(folder, settings, within) == [judge("Say Grid10")["input_ids"]]
    with pytest.raises(InputError, match=r"task 'u', sample_idx 0: token id 513 \('Grid12'\)"):
        ids_of(folder, settings, [*within, PromptTask(task_id="u", prompt="Say Grid12")])
