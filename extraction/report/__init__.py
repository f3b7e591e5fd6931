"""A run as one HTML page: `python -m extraction report RUN --output report.html`.

`contents` reads commit records and a few other files, `samples` the tokens of a few samples. `page`
makes the sections of them, with `plots` and `tables`; `template` has the frame, the styles and the
script. Every text of a run goes through `markup`, which turns it into text of the page.
"""

from extraction.progress import Progress, silent
from extraction.report.contents import read_contents
from extraction.report.page import page_of
from extraction.storage import Storage


def report(storage: Storage, progress: Progress = silent) -> bytes:
    """Return the page of a run, UTF-8 HTML that needs no other file and no network.

    Args:
        storage: storage of the run.
        progress: called as commit records are read.

    Raises:
        StoreError: there is no run, or a commit record is damaged.
    """
    return page_of(read_contents(storage, progress)).encode()
