"""The figures as a table for a terminal."""

from collections.abc import Sequence

from extraction.printable import printable
from extraction.report.markup import number
from sae.evaluation.columns import MODEL_COLUMNS, ROW_COLUMNS, Column
from sae.evaluation.run import Evaluated, Evaluation


def text_table(evaluation: Evaluation) -> str:
    """Return the figures, one line for each autoencoder."""
    several = evaluation.autoencoders
    first = several[0].rows.all_rows.rows
    lines = [
        f"on {first:,} rows of {printable(evaluation.settings.activations_dir)}",
        *_aligned(several, ROW_COLUMNS),
    ]
    if any(one.model for one in several):
        tokens = max(one.model.tokens for one in several if one.model)
        lines += [
            "",
            f"in {printable(evaluation.settings.model_path or '')}, on {tokens:,} predictions",
            *_aligned([one for one in several if one.model], MODEL_COLUMNS),
        ]
    same = [one.name for one in several if one.trained_on]
    if same:
        lines += ["", f"trained on these rows, so better here than on others: {_names(same)}"]
    return "\n".join(lines)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names))


def _aligned(several: Sequence[Evaluated], columns: Sequence[Column]) -> list[str]:
    cells = [["", *(column.title for column in columns)]]
    cells += [[printable(one.name), *(_shown(c.value_of(one)) for c in columns)] for one in several]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _shown(value: float | int | None) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)
