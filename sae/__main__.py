"""Sparse autoencoders of activations that were extracted.

    python -m sae train    --activations_dir RUN --output_dir SAES
    python -m sae evaluate SAE [SAE ...] --activations_dir RUN
    python -m sae score    SAE [SAE ...] --activations_dir RUN --label_field FIELD --first VALUE
    python -m sae latents  SAE --activations_dir RUN --output_dir OUT
    python -m sae vector   --sae SAE --latents N --output_file VECTORS.safetensors
    python -m sae convert  SAE OUT --to FORMAT

RUN, SAE and OUT are folders, gs://bucket/prefix or s3://bucket/prefix; SAE may also be on the
Hugging Face hub, hf://owner/name/folder. Exit status 0: done; 2: refused, with one message; 74: the
disk stayed full or the bucket could not be reached; 130 and 143: stopped by ctrl-C or SIGTERM, and
`train` and `latents` go on with `--resume True`.
"""

import sys

if __name__ == "__main__":
    from extraction.interruption import end_on_signals, leave

    end_on_signals(  # before slow imports
        "the same command with --resume True goes on"
        if sys.argv[1:2] in (["train"], ["latents"])
        else "the command can be repeated"
    )

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from extraction.command_parser import BAD_INPUT, CommandParser
from extraction.printable import printable
from extraction.progress import ProgressLine
from inference.settings.command_line import ended, make_parser, parse_settings

TRAIN = """Train sparse autoencoders on a run's rows, one for each hook point.

    python -m sae train --activations_dir ./activations --output_dir ./saes --d_sae 8x --k 64

Each autoencoder is a folder that SAELens reads, of the hook point's name. A --config file may list
several under `saes`, each with the settings that differ; all are trained on one read of the rows.
"""


EVALUATE = """Measure autoencoders on rows and, with a model and texts, in the model.

    python -m sae evaluate ./saes/layer_12 --activations_dir ./held_out --output_dir ./evaluation
    python -m sae evaluate ./saes/* --activations_dir ./held_out --model_path Qwen/Qwen2.5-0.5B \\
        --dataset texts.jsonl --context_length 512

On rows: explained variance 1 - E|x - y|^2 / (E|x|^2 - |E x|^2) of reconstructions y, the fraction
of variance unexplained with and without attention sinks; without them active latents of a row (l0),
latents that are active in no row (dead), cosine, ratio of norms, relative bias. In the model:
cross-entropy as it is, with reconstructions and with zeros at the hook point, the part that
reconstructions recover of what zeros lose, and divergence. Sinks and special tokens are bypassed
there. training.html also shows how the metrics developed, from metrics.jsonl beside an
autoencoder's folder.
"""


SCORE = """Find latents that tell two groups of rows apart.

    python -m sae score ./saes/layer_12 --activations_dir ./entities --label_field known \\
        --first true --second false --category_field entity_type --background_dir ./random_tokens
    python -m sae score ./saes/* --activations_dir ./refused --second_activations_dir ./answered

Groups are values of a field of outputs.jsonl (or of --labels_file), or two runs. Figures of each
latent: the part of the rows in which it is active, its mean, Welch's t with p and q (Benjamini and
Hochberg), area under the ROC curve. Latents are chosen by --metric on one part of the tasks; the
figures in the table are of the other part. With --category_field a latent's score is its least over
the categories. p and q take rows as independent: extract one row of each sample.
"""


LATENTS = """Show what each latent is active on.

    python -m sae latents ./saes/layer_12 --activations_dir ./activations --output_dir ./latents \\
        --model_path Qwen/Qwen2.5-0.5B

Of each latent: density, mean and largest activation, the rows of largest activation and random rows
of ranges of activation with the tokens around them, latents of similar decoder rows and, with a
model, the tokens that its decoder row makes likelier and less likely. One pass over the rows, and
a second read of the files of the rows that are shown. latents.jsonl has a line for each latent;
latents.html is a page to search and sort.
"""


VECTOR = """Write directions for steering: decoder rows, or a difference of two groups' means.

    python -m sae vector --sae ./saes/layer_12 --latents 3801 17 --output_file vectors.safetensors
    python -m sae vector --activations_dir ./entities --label_field known --first true \\
        --second false --output_file vectors.safetensors

The file holds one float32 tensor [d] for each direction, latent_3801 or true_minus_false, and in
its metadata hook point, norm and the digest of the model's weights. sae.load_vectors reads it.
"""


CONVERT = """Write an autoencoder in another library's format.

Latents and reconstructions stay the same: what a format cannot hold is refused, or folded into the
weights (b_dec into the encoder's bias, norms of the decoder that a topk autoencoder is chosen by).
The source stays. OUT appears when it is complete.

examples:
  python -m sae convert ./saes/layer_12 ./converted --to dictionary_learning
  python -m sae convert gs://bucket/saes/layer_12 ./layers.12 --to sparsify
"""


def _train(arguments: Sequence[str]) -> int:
    from sae.training.run_settings import TrainSettings
    from sae.training.sweep import LIST, entries, read_sweep

    parser = make_parser(TrainSettings, TRAIN)

    def work() -> None:
        config = vars(parser.parse_args(arguments)).get("config")
        settings = parse_settings(parser, TrainSettings, arguments, apart=(LIST,))
        listed = None if config is None else read_sweep(Path(config))
        chosen = entries(settings.autoencoder(), listed)
        from sae.training.run import run  # and JAX, which takes seconds

        with ProgressLine() as progress:
            found = run(settings, chosen, progress)
        for name, sae in found.items():
            print(f"{settings.output_dir}/{name}: {sae}")

    return ended(work)


def _evaluate(arguments: Sequence[str]) -> int:
    from sae.evaluation.settings import EvaluateSettings

    parser = make_parser(EvaluateSettings, EVALUATE)

    def work() -> None:
        settings = parse_settings(parser, EvaluateSettings, arguments)
        from sae.evaluation.run import evaluate, write
        from sae.evaluation.text_table import text_table

        with ProgressLine() as progress:
            evaluation = evaluate(settings, progress)
        print(text_table(evaluation))
        if settings.output_dir is not None:
            print("\n".join(map(printable, write(evaluation))))

    return ended(work)


def _score(arguments: Sequence[str]) -> int:
    from sae.scores.settings import ScoreSettings

    parser = make_parser(ScoreSettings, SCORE)

    def work() -> None:
        settings = parse_settings(parser, ScoreSettings, arguments)
        from sae.scores.results import text_table, write
        from sae.scores.run import score

        with ProgressLine() as progress:
            scores = score(settings, progress)
        if scores is None:
            told = f"part {settings.part} is in {settings.output_dir}/sums; the results follow"
            print(printable(f"{told} when the other parts are there"))
            return
        print(text_table(scores))
        if settings.output_dir is not None:
            print("\n".join(map(printable, write(scores))))

    return ended(work)


def _latents(arguments: Sequence[str]) -> int:
    from sae.latents.settings import LatentsSettings

    parser = make_parser(LatentsSettings, LATENTS)

    def work() -> None:
        settings = parse_settings(parser, LatentsSettings, arguments)
        from sae.latents.results import summary, write
        from sae.latents.run import describe

        with ProgressLine() as progress:
            found = describe(settings, progress)
        if found is None:
            told = f"part {settings.part} is in {settings.output_dir}/pass; the results follow"
            print(printable(f"{told} when the other parts are there"))
            return
        print("\n".join(map(printable, [*summary(found).splitlines(), *write(found)])))

    return ended(work)


def _vector(arguments: Sequence[str]) -> int:
    from sae.vectors.settings import VectorSettings

    parser = make_parser(VectorSettings, VECTOR)

    def work() -> None:
        settings = parse_settings(parser, VectorSettings, arguments)
        from sae.vectors.run import make_vectors

        with ProgressLine() as progress:
            vectors = make_vectors(settings, progress)
        for vector in vectors:
            print(printable(f"{settings.output_file}: {vector}"))

    return ended(work)


def _convert(arguments: Sequence[str]) -> int:
    from sae.files import FORMATS, WRITTEN, load, save

    parser = CommandParser(
        prog="python -m sae convert",
        description=CONVERT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SAE", help="folder or prefix of an autoencoder")
    parser.add_argument("out", metavar="OUT", help="folder or prefix to write, which is new")
    parser.add_argument("--to", required=True, choices=WRITTEN, help="format of OUT")
    parser.add_argument(
        "--from",
        dest="source_format",
        choices=FORMATS,
        help="format of SAE; default: the one that its files have",
    )

    def work() -> None:
        flags = parser.parse_args(arguments)
        sae = load(flags.source, format=flags.source_format)
        save(sae, flags.out, format=flags.to)
        print(printable(f"{flags.out}: {sae}, in the format {flags.to}"))

    return ended(work)


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "score": _score,
    "latents": _latents,
    "vector": _vector,
    "convert": _convert,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: words of the command line; None: those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = CommandParser(
        prog="python -m sae",
        usage="%(prog)s COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    if not words:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return COMMANDS[parser.parse_args(words[:1]).command](words[1:])


if __name__ == "__main__":
    leave(main())
