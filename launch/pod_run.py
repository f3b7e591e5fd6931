"""Watch a run on a TPU slice: look, decide (`life_cycle`), act, until the end.

It may be stopped and started again at any time: all that it needs to know is in the slice's labels
and in the bucket.
"""

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from extraction.errors import StorageUnavailableError
from inference.errors import InputError
from inference.planner.machines import machine as known_machine
from launch import commands, gcloud, life_cycle
from launch.commands import pasted
from launch.finished_run import check_run, is_whole
from launch.life_cycle import decide
from launch.package import Archive, make_archive
from launch.settings import RunSettings, bucket, on_machine
from launch.slice_state import Check, Create, Delete, End, Seen, State, Wait, Wake
from launch.worker_script import worker_script

POLL = 30.0
"""Seconds between two looks."""

Say = Callable[[str], None]


def clean_up_hint(settings: RunSettings) -> str:
    """Return a line that says how to delete the slice."""
    return f"to delete the slice: {pasted(gcloud.delete(settings))}"


def run_on_pod(settings: RunSettings, say: Say) -> int:
    """Run a run to its end, and return its exit status.

    Args:
        settings: settings of the run.
        say: called with a line about each event.

    Raises:
        InputError: a setting is wrong, or Google refuses a request.
        StorageUnavailableError: Google cannot be reached.
    """
    workers = known_machine(on_machine(settings).slice).hosts
    say(clean_up_hint(settings))
    archive = make_archive()
    state, said = State(), ""
    resource = look(settings, say)
    if resource is not None:
        state = _join(resource, archive, say)
    elif is_whole(settings):
        say(f"{bucket(settings)} holds the whole run already")
        return 0
    while True:
        reports = read_reports(settings, state.attempt, say)
        seen = Seen(resource=resource, reports=reports, time=time.time())
        state, action = decide(state, seen, workers, settings.limits)
        match action:
            case Wait(why):
                if why != said:
                    say(why)
                said = why
                time.sleep(POLL)
            case Create(why):
                say(f"requesting slice {state.attempts} of {settings.limits.attempts}: {why}")
                state = dataclasses.replace(state, attempt=create(settings, archive, say))
            case Delete(why):
                say(f"deleting the slice: {why}")
                _tell_failures(settings, state, say)
                delete(settings, say)
            case Wake(silent, why):
                say(f"{why}; starting them again")
                _wake(settings, silent, say)
            case Check():
                whole = check_run(settings, say).verdict == "good"
                return 0 if whole else life_cycle.FAILED
            case End(why, status):
                say(why)
                if resource is not None:
                    say(clean_up_hint(settings))
                return status
        resource = look(settings, say)


def _join(resource: gcloud.Resource, archive: Archive, say: Say) -> State:
    """Return the state for continuing with a slice that exists."""
    if resource.attempt is None:
        raise InputError(
            "a slice of this name exists that launch did not create; choose another name"
        )
    say(f"the slice exists already, attempt {resource.attempt}")
    if resource.source != archive.sha256[:16]:
        say("it runs another version of the program; to run this version, delete the slice first")
    return State(attempts=1, attempt=resource.attempt)


def look(settings: RunSettings, say: Say) -> gcloud.Resource | None:
    """Return the slice as it is now; None if there is none."""
    answer = commands.run(gcloud.describe(settings), say, missing_is_fine=True)
    return None if answer.is_missing else gcloud.parse_resource(answer.out)


def read_reports(settings: RunSettings, attempt: str | None, say: Say) -> dict[int, gcloud.Report]:
    """Return the last report of each worker of an attempt."""
    if attempt is None:
        return {}
    address = f"{gcloud.attempt_folder(settings, attempt)}/worker-*.status"
    answer = commands.run(gcloud.cat(address), say, missing_is_fine=True)
    return {} if answer.is_missing else gcloud.parse_reports(answer.out, attempt)


def attempt_name() -> str:
    """Return a unique name for an attempt that begins now."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def create(settings: RunSettings, archive: Archive, say: Say) -> str:
    """Upload the program, request a slice, and return the attempt's name."""
    attempt = attempt_name()
    source, script = write_files(settings, archive, attempt)
    commands.run(upload_archive(settings, archive, source), say)
    command = gcloud.create(settings, script, attempt, archive.sha256[:16])
    for _ in range(commands.TRIES):
        answer = commands.once(command)
        if answer.status == 0:
            return attempt
        # It may exist although the answer was lost; it must not be requested twice.
        found = look(settings, say)
        if found is not None and found.attempt == attempt:
            return attempt
        if answer.is_permanent or found is not None:
            break
        say(f"the request failed: {answer.error.strip()}; trying again")
        time.sleep(commands.PAUSE)
    raise InputError(f"{pasted(command)}: {answer.error.strip()}")


def upload_archive(settings: RunSettings, archive: Archive, source: Path) -> commands.Command:
    """Return the command that uploads the program to the bucket."""
    return gcloud.upload(str(source), f"{gcloud.launch_folder(settings)}/{archive.name}")


def write_files(settings: RunSettings, archive: Archive, attempt: str) -> tuple[Path, Path]:
    """Write the archive and the start-up script to the folder `NAME.launch`; return their paths."""
    folder = Path(f"{settings.name}.launch")
    folder.mkdir(exist_ok=True)
    source, script = folder / archive.name, folder / "worker.sh"
    source.write_bytes(archive.data)
    script.write_text(worker_script(settings, archive, attempt), encoding="utf-8")
    return source, script


def delete(settings: RunSettings, say: Say) -> None:
    """Delete the slice, if there is one."""
    commands.run(gcloud.delete(settings), say, missing_is_fine=True)


def _wake(settings: RunSettings, silent: Sequence[int], say: Say) -> None:
    """Print the journals of silent workers and run their start-up script again."""
    for worker in silent[:4]:
        answer = commands.once(gcloud.ssh(settings, worker, gcloud.JOURNAL))
        text = answer.out if answer.status == 0 else answer.error
        say(f"worker {worker}'s journal:\n{text.strip()}")
    for worker in silent:
        try:
            commands.run(gcloud.ssh(settings, worker, gcloud.START_AGAIN), say)
        except (InputError, StorageUnavailableError) as error:
            say(f"worker {worker} cannot be reached: {error}")


def _tell_failures(settings: RunSettings, state: State, say: Say) -> None:
    """Print the last lines of the logs of a few workers that failed."""
    failed = [number for number, (report, _) in state.lives.items() if report.code]
    for number in failed[:2]:
        address = f"{gcloud.attempt_folder(settings, state.attempt or '')}/worker-{number}.log"
        answer = commands.once(gcloud.cat(address))
        lines = answer.out.splitlines()[-20:]
        say("\n".join([f"the end of worker {number}'s log, {address}:", *lines]))
