"""The commands of `python -m launch`, one function each."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from inference.errors import InputError
from inference.planner.machines import machine as known_machine
from launch import commands, gcloud, gke, local, pod_run, skypilot, slurm
from launch.commands import pasted
from launch.finished_run import check_run
from launch.package import make_archive
from launch.settings import RunSettings, bucket, on_machine


def say(line: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def show(comment: str, *lines: Sequence[str]) -> None:
    """Print commands in a form that can be pasted into a shell."""
    print(f"# {comment}")
    for line in lines:
        print(pasted(line))
    print()


def create(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Create a TPU slice, which runs the run by itself; nobody needs to watch."""
    archive = make_archive()
    if flags.dry_run:
        attempt = pod_run.attempt_name()
        source, script = pod_run.write_files(settings, archive, attempt)
        show(
            f"every worker runs {script} whenever it starts; {source} is the program",
            pod_run.upload_archive(settings, archive, source),
            gcloud.create(settings, script, attempt, archive.sha256[:16]),
        )
        return 0
    say(pod_run.clean_up_hint(settings))
    attempt = pod_run.create(settings, archive, say)
    say(f"requested; attempt {attempt}. `launch status` shows its progress")
    return 0


def run(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Create a TPU slice and watch the run to its end."""
    if not flags.dry_run:
        return pod_run.run_on_pod(settings, say)
    create(settings, flags)
    folder = gcloud.attempt_folder(settings, "TIME")
    show(
        f"every {pod_run.POLL:g} s, with the attempt's time",
        gcloud.describe(settings),
        gcloud.cat(f"{folder}/worker-*.status"),
    )
    show(
        "on a worker that is silent",
        gcloud.ssh(settings, 0, gcloud.JOURNAL),
        gcloud.ssh(settings, 0, gcloud.START_AGAIN),
    )
    show("when it is preempted, fails or is done", gcloud.delete(settings))
    show("at the end", ["python", "-m", "extraction", "verify", bucket(settings)])
    return 0


def status(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Show the slice, its workers, and the run in the bucket."""
    if flags.dry_run:
        show(
            "the slice, and the workers of its attempt",
            gcloud.describe(settings),
            gcloud.cat(f"{gcloud.attempt_folder(settings, 'TIME')}/worker-*.status"),
        )
        return 0
    workers = known_machine(on_machine(settings).slice).hosts
    resource = pod_run.look(settings, _quiet)
    attempt = None
    if resource is None:
        print(f"{settings.name}: there is no slice")
    else:
        attempt = resource.attempt
        print(f"{settings.name}: {resource.state} {resource.detail}".rstrip())
        reports = pod_run.read_reports(settings, attempt, _quiet)
        for number in range(workers):
            line = reports[number].line if number in reports else "no report yet"
            print(f"  worker {number}: {line}")
    check_run(settings, print)
    return 0


def logs(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Print the logs of the workers, of the present or of a given attempt."""
    attempt, workers = flags.attempt, known_machine(on_machine(settings).slice).hosts
    if flags.follow and flags.worker is None and workers > 1:
        raise InputError(f"--follow needs --worker N, a number from 0 to {workers - 1}")
    if flags.dry_run:
        show("the logs of an attempt", _log_command(settings, attempt or "TIME", flags.worker))
        return 0
    if attempt is None:
        resource = pod_run.look(settings, _quiet)
        attempt = "*" if resource is None or resource.attempt is None else resource.attempt
    shown = 0
    while True:
        command = _log_command(settings, attempt, flags.worker)
        answer = commands.run(command, say, missing_is_fine=True)
        if answer.is_missing:
            print("nothing has been written yet", file=sys.stderr)
        print(answer.out[shown:], end="", flush=True)
        shown = len(answer.out)
        if not flags.follow:
            return 0
        time.sleep(pod_run.POLL)


def _log_command(settings: RunSettings, attempt: str, worker: int | None) -> commands.Command:
    number = "*" if worker is None else worker
    return gcloud.cat(f"{gcloud.attempt_folder(settings, attempt)}/worker-{number}.log")


def delete(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Delete the slice, whatever runs on it; the files in the bucket stay."""
    if flags.dry_run:
        show("delete the slice", gcloud.delete(settings))
        return 0
    pod_run.delete(settings, say)
    print(f"{settings.name}: there is no slice")
    return 0


def gke_run(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Start the run on a Kubernetes cluster that kubectl talks to."""
    archive = make_archive()
    text = gke.manifest_text(settings, archive)
    folder = Path(f"{settings.name}.launch")
    folder.mkdir(exist_ok=True)
    file, source = folder / "jobset.yaml", folder / archive.name
    file.write_text(text, encoding="utf-8")
    source.write_bytes(archive.data)
    upload = pod_run.upload_archive(settings, archive, source)
    if flags.dry_run:
        print(text)
        show(f"start; {file} is the manifest", upload, gke.apply(str(file)))
    else:
        commands.run(upload, say)
        print(commands.run(gke.apply(str(file)), say).out, end="")
    show("watch", gke.status(settings), gke.logs(settings))
    show("delete", gke.delete(settings))
    return 0


def slurm_run(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Queue the run with SLURM."""
    text = slurm.script(settings)
    folder = Path(f"{settings.name}.launch")
    folder.mkdir(exist_ok=True)
    file = folder / "job.sh"
    file.write_text(text, encoding="utf-8")
    if flags.dry_run:
        print(text)
        show("queue it", slurm.submit(str(file)))
    else:
        answer = commands.once(slurm.submit(str(file)))
        print(answer.out + answer.error, end="")
        return 1 if answer.status else 0
    return 0


def sky_run(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Write a SkyPilot task, which finds spot slices by itself; `sky jobs launch` starts it."""
    text = skypilot.task(settings)
    folder = Path(f"{settings.name}.launch")
    folder.mkdir(exist_ok=True)
    file = folder / "task.yaml"
    file.write_text(text, encoding="utf-8")
    if flags.dry_run:
        print(text)
    show("start it and watch it", skypilot.start(settings, str(file)))
    show("at the end", ["python", "-m", "extraction", "verify", bucket(settings)])
    return 0


def local_run(settings: RunSettings, flags: argparse.Namespace) -> int:
    """Start the run on this machine, as several processes with virtual devices."""
    if flags.dry_run:
        values = [f"{name}={value}" for name, value in local.environment(flags.devices).items()]
        port = local.free_port()
        show(
            "all at once",
            *(
                ["env", *values, *local.process_command(settings, number, flags.processes, port)]
                for number in range(flags.processes)
            ),
        )
        return 0
    return local.run_here(settings, flags.processes, flags.devices, say)


def _quiet(line: str) -> None:
    """Print nothing, for commands whose only output is the answer."""


def _no_flags(parser: argparse.ArgumentParser) -> None:
    """Add no flags, for commands that have none of their own."""


def _log_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worker", type=_number, help="number of the worker (default: all)")
    parser.add_argument("--attempt", help="name of the attempt (default: the present one)")
    parser.add_argument(
        "--follow", action="store_true", help="keep printing new lines; needs --worker"
    )


def _local_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=_number, default=4, help="number of processes (default: 4)"
    )
    parser.add_argument(
        "--devices", type=_number, default=1, help="virtual devices of each process (default: 1)"
    )


def _number(text: str) -> int:
    """Return the whole number of a flag's value."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number is needed, not {text!r}")
    return int(text)


def _check_machine(settings: RunSettings) -> None:
    """Refuse settings that no slice can run, before anything is created."""
    known_machine(on_machine(settings).slice)


def _check_nothing(settings: RunSettings) -> None:
    """Check nothing, for runs that need no machine."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A command: its function, its check of the settings, and its own flags."""

    run: Callable[[RunSettings, argparse.Namespace], int]
    check: Callable[[RunSettings], None] = _check_machine
    add_flags: Callable[[argparse.ArgumentParser], None] = _no_flags


COMMANDS = {
    "create": Entry(create),
    "run": Entry(run),
    "status": Entry(status),
    "logs": Entry(logs, add_flags=_log_flags),
    "delete": Entry(delete),
    "gke": Entry(gke_run),
    "sky": Entry(sky_run),
    "slurm": Entry(slurm_run, _check_nothing),
    "local": Entry(local_run, _check_nothing, _local_flags),
}
