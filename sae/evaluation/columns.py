"""The figures that tables show, each with its title and what it means."""

from collections.abc import Callable
from typing import NamedTuple

from sae.evaluation.run import Evaluated


class Column(NamedTuple):
    """A figure of an autoencoder.

    Attributes:
        title: title of the column.
        meaning: one sentence about it.
        value_of: returns the number; None where there is none.
    """

    title: str
    meaning: str
    value_of: Callable[[Evaluated], float | int | None]


ROW_COLUMNS = (
    Column(
        "explained variance",
        "1 - E‖x - x̂‖² / (E‖x‖² - ‖E x‖²) over all rows x and their reconstructions x̂.",
        lambda one: one.rows.all_rows.explained_variance,
    ),
    Column("FVU", "1 - explained variance.", lambda one: one.rows.all_rows.fvu),
    Column(
        "FVU without sinks",
        "The same over the rows that are no attention sinks.",
        lambda one: one.rows.without_sinks.fvu,
    ),
    Column(
        "L0",
        "Mean number of active latents of a row, without sinks.",
        lambda one: one.rows.without_sinks.l0,
    ),
    Column("dead", "Latents that are active in no row but sinks.", lambda one: one.rows.dead),
    Column(
        "cosine",
        "Mean cosine of x and x̂, without sinks.",
        lambda one: one.rows.without_sinks.cosine,
    ),
    Column(
        "norm ratio",
        "Mean of ‖x̂‖ / ‖x‖, without sinks.",
        lambda one: one.rows.without_sinks.norm_ratio,
    ),
    Column(
        "bias",
        "E‖x̂‖² / E⟨x, x̂⟩, without sinks; below 1: reconstructions are too short.",
        lambda one: one.rows.without_sinks.bias,
    ),
)

MODEL_COLUMNS = (
    Column(
        "CE clean",
        "Cross-entropy of the next token, in nats, of the model as it is.",
        lambda one: one.model and one.model.ce_clean,
    ),
    Column(
        "CE spliced",
        "The same with reconstructions at the hook point.",
        lambda one: one.model and one.model.ce_spliced,
    ),
    Column(
        "CE ablated",
        "The same with zeros at the hook point.",
        lambda one: one.model and one.model.ce_ablated,
    ),
    Column(
        "CE recovered",
        "(CE ablated - CE spliced) / (CE ablated - CE clean).",
        lambda one: one.model and one.model.ce_recovered,
    ),
    Column(
        "KL spliced",
        "Divergence from the clean model's distribution, in nats, with reconstructions.",
        lambda one: one.model and one.model.kl_spliced,
    ),
    Column(
        "KL ablated",
        "The same with zeros.",
        lambda one: one.model and one.model.kl_ablated,
    ),
)
