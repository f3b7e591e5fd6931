"""A run as a SLURM job: one script, in which `srun` starts the processes.

The distributed command detects SLURM by itself. Folders must be shared by all nodes. The job is
queued again when it is preempted or out of time, and then resumes.
"""

import math
import shlex

from launch.commands import Command
from launch.settings import RunSettings, extraction_flags
from launch.worker_script import LITERALLY, MODULE


def script(settings: RunSettings) -> str:
    """Return the job's script."""
    slurm = settings.slurm
    options = {
        "job-name": settings.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.tasks_per_node,
        "cpus-per-task": slurm.cpus_per_task,
        "gpus-per-task": slurm.gpus_per_task or None,
        "time": math.ceil(slurm.hours * 60),
        "partition": slurm.partition,
        "account": slurm.account,
        "signal": "TERM@120",
        "output": f"{settings.name}-%j.log",
        "open-mode": "append",
    }
    job = [slurm.python, "-m", MODULE, *extraction_flags(settings.extraction)]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None),
            "#SBATCH --requeue",
            LITERALLY,
            "set -uo pipefail",
            "",
            f"readonly RESTARTS={settings.limits.restarts}",
            f"readonly ATTEMPTS={settings.limits.attempts}",
            f"readonly JOB=({shlex.join(job)})",
            BODY,
        ]
    )


BODY = r"""
for ((restarts = 0; ; restarts++)); do
  code=0
  srun --kill-on-bad-exit=1 "${JOB[@]}" || code=$?
  case $code in
    0 | 2 | 5) exit "$code" ;;  # done; bad input; wrong rows
    143) break ;;               # asked to stop, before the time is up
  esac
  [[ $restarts -lt $RESTARTS ]] || exit "$code"
  echo "the command ended with $code; it goes on with --resume"
done
if [[ ${SLURM_RESTART_COUNT:-0} -lt $((ATTEMPTS - 1)) ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit 143
"""


def submit(file: str) -> Command:
    """Return the command that queues a job's script."""
    return ["sbatch", file]
