"""Latents of the demo's autoencoder that mean something, tested on a text it has not seen.

    python -m benchmarks.latent_meanings sae_run/saes/layer_15 \\
        --activations_dir sae_run/activations --held_out sae_run/held_out

The words of each meaning were written down after reading `latents.html`. For each list of words,
the latent and the part of its largest activation above which it says yes are those of largest F1
over the rows of --activations_dir, so the numbers of latents need not be known. The figures are
of the rows of --held_out: of the rows where the latent says yes, the part whose token is one of
the words (precision), and of the rows with such a token, the part where it says yes (recall). `by
chance` is the part of all rows with such a token. Tokens are compared without spaces and case; a
word of several tokens does not count. `others` are tokens of held-out rows where the latent says
yes that are in no list.
"""

import argparse
import datetime
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.timing import cpu_name
from extraction import ActivationDataset
from sae import SparseAutoencoder, load
from sae.fitting import hook_point_of

MEANINGS = {
    "consequence": "therefore hence thus consequently accordingly",
    "almost": "nearly almost about approximately",
    "opinion": "think believe trust confident deem believed thought",
    "possibility": "may perhaps might possibly",
    "you": "you your yours yourself",
    "the speaker": "i my me myself",
    "concession": "although while though notwithstanding despite",
    "saying": "say said says saying",
    "millions": "million millions billion billions",
    "religion and morals": "god faith moral worship christian religion religious divine prayer",
    "three and up": "three four five six",
    "today": "today now",
    "comparison": "less more greater higher faster easier",
    "frequency": "often sometimes always never",
    "need": "need needs needed necessary required",
    "safety": "protect protected protecting safety security safeguard",
    "spans of time": "year years decade decades generation generations",
    "ways and reasons": "how why where",
    "months": "january february march april june july august september october november december",
    "efforts": "effort efforts attempt attempts",
    "one of two": "both either neither",
    "men and women": "men women man woman ladies",
}
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
MAX_NORM_MULTIPLE = 10


class Rows:
    """The latents of the rows of a run without attention sinks, and their words."""

    def __init__(self, sae: SparseAutoencoder, address: str):
        dataset = ActivationDataset(address, hook_point_of(sae, address, None))
        kept = dataset.kept_rows(max_norm_multiple=MAX_NORM_MULTIPLE).numbers
        texts = dataset.keys(kept).token_text
        self.words = np.array([text.strip().lower() for text in texts])
        self.latents = np.asarray(sae.encode(dataset[kept]))

    def are(self, words: Sequence[str]) -> np.ndarray:
        """Return `[R]` bool: whether a row's token is one of the words."""
        return np.isin(self.words, words)


def best(rows: Rows, wanted: np.ndarray, largest: np.ndarray) -> tuple[int, float]:
    """Return the latent, and the share of its largest activation, of largest F1."""
    found = (-1.0, 0, 0.0)
    for share in SHARES:
        says = rows.latents > share * largest
        hits = says[wanted].sum(0)
        f1 = 2 * hits / np.maximum(1, says.sum(0) + wanted.sum())
        found = max(found, (float(f1.max()), int(f1.argmax()), share))
    return found[1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose and test, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sae", help="the autoencoder")
    parser.add_argument("--activations_dir", required=True, help="run that latents are chosen on")
    parser.add_argument("--held_out", required=True, help="run that they are tested on")
    options = parser.parse_args(arguments)
    sae = load(options.sae)
    rows, tested = Rows(sae, options.activations_dir), Rows(sae, options.held_out)
    largest = rows.latents.max(0)
    print(f"{datetime.date.today()}, numpy {np.__version__}, {cpu_name()},"
          f" {len(os.sched_getaffinity(0))} cores")  # fmt: skip
    print(f"chosen on {len(rows.words):,} rows, tested on {len(tested.words):,}")
    print(f"{'meaning':22}{'latent':>8}{'above':>8}{'says yes':>10}{'precision':>11}"
          f"{'recall':>8}{'by chance':>11}  words hit; others")  # fmt: skip
    for name, words in MEANINGS.items():
        listed = words.split()
        latent, share = best(rows, rows.are(listed), largest)
        says, wanted = tested.latents[:, latent] > share * largest[latent], tested.are(listed)
        hits = int((says & wanted).sum())
        told = [
            " ".join(f"{word} {n}" for word, n in Counter(tested.words[where]).most_common(most))
            for where, most in ((says & wanted, 6), (says & ~wanted, 4))
        ]
        print(f"{name:22}{latent:8}{share * largest[latent]:8.1f}{int(says.sum()):10}"
              f"{hits / max(1, says.sum()):11.2f}{hits / max(1, wanted.sum()):8.2f}"
              f"{wanted.mean():11.4f}  {told[0]}; {told[1]}")  # fmt: skip


if __name__ == "__main__":
    main()
