"""The demo is made the same way every time, and is what its documents say."""

import json

from transformers import AutoTokenizer

from examples.make_demo import main
from inference.inputs.tasks import read_tasks


def test_two_makings_are_equal(tmp_path):
    for name in ("a", "b"):
        main([str(tmp_path / name)])
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert path.read_bytes() == twin.read_bytes(), path.name


def test_tokenizer_is_byte_level_with_qwens_special_tokens(demo_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint)
    config = json.loads((demo_checkpoint / "config.json").read_text())
    assert len(tokenizer) <= config["vocab_size"]
    assert tokenizer.eos_token_id == config["eos_token_id"]
    text = "Zürich 東京 🙂 0123\n\tend"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("0123")["input_ids"]) == 4
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer("<|im_start|>user")["input_ids"][0] == tokenizer.convert_tokens_to_ids(
        "<|im_start|>"
    )


def test_tasks_are_arc_tasks_with_known_solutions(demo_tasks, tmp_path):
    (tmp_path / "tasks.json").write_text(json.dumps(demo_tasks))
    tasks = read_tasks(str(tmp_path / "tasks.json"))
    assert len(tasks) == 6
