"""The example on known and unknown names, without its names' package and its model."""

import numpy as np
import pytest
import torch

from examples.entity_names import Entity, is_right, knowledge
from examples.entity_recognition import Shift, plot, questions, table, yes_less_no
from inference import load_model
from tests.oracle import load_torch


@pytest.mark.parametrize(
    ("greedy", "sampled", "told"),
    [
        (" France. It is", [" France", " france.", " Spain", " Italy"], "known"),
        (" France", [" Spain", " Spain", " Spain", " France"], None),
        (" Spain", [" Spain"] * 4, "unknown"),
        (" Spain", [" Spain", " Spain", " Spain", " France"], None),
        (" Spain. Not France", [" Italy. France"] * 4, "unknown"),
    ],
)
def test_known_unknown_or_between(greedy, sampled, told):
    assert knowledge(greedy, sampled, "France") == told


def test_only_the_first_sentence_counts():
    assert is_right(" the country of FRANCE, they say", "France")
    assert not is_right(" Spain. France", "France")


def test_table_and_plot_hold_every_shift():
    shifts = [Shift("known latent 7", 0.5, -0.25, 0.125), Shift("weights <b>", 0.0, 0.0, 0.0)]
    assert "known latent 7                 +0.500   -0.250    0.125" in table(shifts)
    assert "weights &lt;b&gt;" in plot(shifts)
    assert plot(shifts).count("<rect") == 5


class TestOfTheModel:
    @pytest.fixture
    def model(self, demo_checkpoint):
        return load_model(str(demo_checkpoint))

    def test_the_answer_is_torchs_last_logit(self, model, demo_checkpoint):
        asked = questions(model, [Entity("city", "Rome", "Italy"), Entity("city", "Oslo Bay", "x")])
        ours = yes_less_no(model, asked)
        torch_model = load_torch(demo_checkpoint)
        for row, ids, mask in zip(ours, asked.ids, asked.mask, strict=True):
            logits = (
                torch_model(torch.from_numpy(ids[None, : mask.sum()].astype(np.int64)))
                .logits[0, -1]
                .detach()
                .numpy()
            )
            np.testing.assert_allclose(row, logits[asked.yes] - logits[asked.no], atol=1e-4)

    def test_the_position_is_the_names_last_token(self, model):
        names = ["Rome", "Oslo Bay", "Llanfairpwll"]
        asked = questions(model, [Entity("city", name, "x") for name in names])
        for name, ids, (position,) in zip(names, asked.ids, asked.positions, strict=True):
            before = model.tokenizer.decode(ids[:position])
            with_it = model.tokenizer.decode(ids[: position + 1])
            assert name in with_it
            assert name not in before
