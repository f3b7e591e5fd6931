"""Which settings of a checkpoint's generation_config.json are used.

The next token is the likeliest, or drawn as the command's flags say. Of the file, the stop tokens
are always used, and the repetition penalty on request. A warning names every other field that would
change the text of `generate(do_sample=False)` of transformers.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extraction.setting_names import setting
from inference.settings.commands import AUTO_PENALTY, check_penalty

log = logging.getLogger(__name__)

NOT_FOLLOWED: Mapping[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static"),
    "constraints": ([],),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "is_assistant": (False,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ([], {}),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}
"""Fields that change greedy decoding, with their neutral values besides null.

From `GenerationMixin._get_logits_processor` and `_get_stopping_criteria`, and
`GenerationConfig.get_generation_mode`, of transformers 5.24.
"""


def followed_penalty(folder: Path, asked: str, *, predicts: bool) -> float:
    """Return the repetition penalty of a run, and warn of fields that are not used.

    Args:
        folder: folder of the checkpoint.
        asked: a number, or `auto` for the checkpoint's penalty, or 1 if it has none.
        predicts: whether any token is predicted; if not, the file is not read.

    Raises:
        InputError: `asked` is `auto`, and the checkpoint's penalty is invalid.
    """
    if not predicts:
        return 1.0
    file, fields = _read_fields(folder)
    theirs = fields.get("repetition_penalty")
    if asked != AUTO_PENALTY:
        penalty = check_penalty(setting("repetition_penalty"), asked)
    else:
        penalty = 1.0 if theirs is None else check_penalty(f"{file}: repetition_penalty", theirs)
    not_followed = [
        name for name, neutral in NOT_FOLLOWED.items() if fields.get(name) not in (None, *neutral)
    ]
    for name in not_followed:
        log.warning(
            "%s: %s %.60s is not used; the generate method of transformers would use it",
            file, name, json.dumps(fields[name]),
        )  # fmt: skip
    if theirs not in (None, penalty):
        log.warning(
            "%s: repetition_penalty %.60s is not used, but %s; %s uses that of the file",
            file, json.dumps(theirs), penalty, setting("repetition_penalty", "auto"),
        )  # fmt: skip
    return penalty


def _read_fields(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file from which transformers takes generation settings, and its fields."""
    file = folder / "generation_config.json"
    if not file.exists():
        file = folder / "config.json"
    return file, json.loads(file.read_text(encoding="utf-8"))
