"""The distributed command, which kills itself after a number of commits.

    python -m tests.inference.killed_command SIGNAL COMMITS PROCESS flags...

Only the process of that number does.
"""

import os
import signal
import sys

from extraction.writing.committer import Committer
from inference.distributed_inference_with_activations import main


def die_after(commits: int, number: signal.Signals) -> None:
    commit, done = Committer.commit, []

    def counted(self, *arguments, **named):
        record = commit(self, *arguments, **named)
        done.append(record)
        if len(done) == commits:
            os.kill(os.getpid(), number)
        return record

    Committer.commit = counted


if __name__ == "__main__":
    # A shell's background job, which the tests may run in, ignores ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    number, commits, process, *flags = sys.argv[1:]
    own = flags[flags.index("--process_id") + 1] if "--process_id" in flags else "0"
    if own == process:
        die_after(int(commits), signal.Signals[number])
    raise SystemExit(main(flags))
