"""Runs a piece of code in a process of its own, with limits on memory and time."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

LIMITED = """
import resource, sys
exec(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + (int(sys.argv[3]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
begun = resource.getrusage(resource.RUSAGE_SELF)
seconds = int(begun.ru_utime + begun.ru_stime) + 1 + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
exec(sys.argv[2])
"""


def run_bounded(
    prepare: str, code: str, *arguments: str, megabytes: int, cpu_seconds: int
) -> subprocess.CompletedProcess[str]:
    """Runs code under limits; the status is negative where the time was over.

    Args:
        prepare: imports and inputs, which are not counted.
        code: what is limited; `sys.argv[5:]` are the arguments.
        arguments: for both.
        megabytes: of memory that `code` may take.
        cpu_seconds: that it may compute for.
    """
    return subprocess.run(
        [
            sys.executable,
            "-c",
            LIMITED,
            prepare,
            code,
            str(megabytes),
            str(cpu_seconds),
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
