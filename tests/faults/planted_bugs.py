"""Bugs put into the store on purpose: a campaign that did not find them would prove nothing.

Each is an edit of a function's source, so it says what it breaks, and fails if the function is no
longer what it was.
"""

import contextlib
import dataclasses
import errno
import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from extraction.run import identity, records
from extraction.storage import file_operations, gcs, local
from extraction.writing import committer, disk_retry, upload
from tests.faults import cloud, failing_operations, kills, planned_run, power_loss, two_runs
from tests.faults.children import run_child
from tests.faults.judge import Campaign, EnoughError, Share


def edit(owner: object, name: str, old: str, new: str) -> None:
    """Replaces a part of a function's source, in this process."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} no longer has {old!r}"
    made: dict = {}
    exec(source.replace(old, new), sys.modules[function.__module__].__dict__, made)
    setattr(owner, name, made[name])


def write_in_place(path: Path, data) -> None:
    """As a writer does that has not thought of it."""
    system = file_operations.os
    descriptor = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for part in file_operations.pieces(data):
        system.write(descriptor, part)
    system.fsync(descriptor)
    system.close(descriptor)


def sync_until_it_works(descriptor: int) -> None:
    """Takes a second fsync's word for the first's pages."""
    try:
        file_operations.os.fsync(descriptor)
    except OSError:
        file_operations.os.fsync(descriptor)


def record_first() -> None:
    """Writes a unit's files when its record is there."""
    original = committer.Committer.commit

    def commit(self, *arguments):
        put_off = []
        with mock.patch.object(self._storage, "replace_all", put_off.extend):
            record = original(self, *arguments)
        for name, data in put_off:
            self._storage.replace(name, data)
        return record

    committer.Committer.commit = commit


def believe_in_writes() -> None:
    """Goes on when a write has failed for good."""
    patiently = committer.patiently

    def hopefully(*arguments, **options):
        try:
            return patiently(*arguments, **options)
        except disk_retry.StorageUnavailableError:
            return True

    committer.patiently = hopefully


def commit_again() -> None:
    """Runs units that are committed, and writes their files anew."""
    planned_run.StoreRun.committed = lambda self: set()
    edit(committer.Committer, "commit", "return log.read(batch_id)", "pass")


def _kills_at_all_spool_operations(campaign: cloud.CloudCampaign) -> None:
    """At every third: which of them take away what, depends on how the threads take turns."""
    for first in range(1, 2 * SHARE.slow + 1, 3):
        cloud.kills_at_spool_operations(campaign, first)


@dataclasses.dataclass(frozen=True)
class Bug:
    """Something broken.

    Attributes:
        name: what the store then does.
        plant: breaks it, in this process.
        find: the campaign that notices.
        slow: it takes long to notice.
    """

    name: str
    plant: Callable[[], None]
    find: Callable[[Campaign], None]
    slow: bool = False


def _edited(name: str, find: Callable[[Campaign], None], *change, slow: bool = False) -> Bug:
    return Bug(name, lambda: edit(*change), find, slow)


def _failing(fault: str) -> Callable[[Campaign], None]:
    return lambda campaign: failing_operations.run(campaign, fault)


def _in_cloud(part: Callable[[cloud.CloudCampaign], None]) -> Callable[[Campaign], None]:
    return lambda campaign: cloud.run(campaign, [part])


def _sync_twice() -> None:
    vars(files)["sync_until_it_works"] = sync_until_it_works
    edit(files, "_sync", "os.fsync(written.descriptor)",
         "sync_until_it_works(written.descriptor)")  # fmt: skip


def _write_in_place() -> None:
    files.publish_over = write_in_place
    files.publish_all_over = lambda those: [write_in_place(*each) for each in those]


def _never_full() -> None:
    disk_retry.FULL = (errno.EDQUOT,)


files, store, lock, uploader = (
    file_operations, local.LocalStorage, identity.RunLock, upload.Uploader,
)  # fmt: skip

SHARE = Share(every=11, slow=11, random=6, stop_at_failure=True)
"""Is enough to notice them."""

BUGS = [
    _edited("data is not synced", power_loss.run,
            files, "_sync", "os.fsync(written.descriptor)", "pass"),
    _edited("folders are not synced", power_loss.run,
            files, "sync_folder", "os.fsync(descriptor)", "pass"),
    _edited("the folder of a unit's files is not synced", power_loss.run,
            files, "publish_all_over", "sync_folder(folder)", "pass"),
    _edited("outputs.jsonl is not synced", power_loss.run,
            files, "sync_and_close", "os.fsync(stream.fileno())", "pass"),
    _edited("new folders are not synced", power_loss.run,
            files, "make_folder", "sync_folder(folder.parent)", "pass"),
    _edited("what a killed process named is not synced", power_loss.run,
            store, "remove_left_overs",
            "patiently(self.address, functools.partial(file_operations.sync_folder, folder))",
            "pass", slow=True),
    _edited("a folder that a killed process made is not synced", power_loss.run,
            store, "remove_left_overs",
            "patiently(self.address, functools.partial(file_operations.sync_above, self.folder))",
            "pass", slow=True),
    Bug("files are written in place", _write_in_place, power_loss.run),
    Bug("the record comes before the files", record_first, kills.run),
    Bug("committed units are written again", commit_again, kills.run),
    _edited("left-overs stay", kills.run,
            store, "remove_left_overs", "file_operations.remove_if_there(path)", "pass"),
    _edited("a short write is taken for a whole one", _failing(failing_operations.SHORT),
            files, "_write", "part = part[os.write(descriptor, part) :]",
            "os.write(descriptor, part); break"),
    Bug("a failed fsync is tried again", _sync_twice, _failing(failing_operations.ONCE)),
    Bug("a failed write is taken for done", believe_in_writes,
        _failing(failing_operations.FOREVER)),
    Bug("a full disk is not waited for", _never_full,
        _failing(failing_operations.FULL_FOR_A_WHILE)),
    _edited("the lock is not taken", two_runs.second_is_refused,
            lock, "__init__", "fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "pass"),
    _edited("locks of other processes are not looked at", two_runs.zombie_in_a_shared_folder,
            lock, "__init__", "_look_for_others(path)", "pass"),
    _edited("objects are overwritten", _in_cloud(cloud.kills_at_requests),
            gcs.GcsStorage, "put_new", "generation=0", "generation=None"),
    _edited("the cloud's record comes before its files", _in_cloud(cloud.kills_at_requests),
            upload, "upload_unit", "adopted: dict[str, CommittedFile] = {}",
            "adopted: dict[str, CommittedFile] = {}; CommitLog(cloud).put(record)"),
    _edited("records are replaced", _in_cloud(cloud.zombies),
            records.CommitLog, "put", "self._storage.put_new(", "self._storage.replace("),
    _edited("what is left in the spool is not uploaded", _in_cloud(cloud.kills_at_requests),
            uploader, "add_left_over", "self.add(record)", "pass", slow=True),
    _edited("files without a record stay in the spool",
            _in_cloud(_kills_at_all_spool_operations),
            uploader, "add_left_over", "self._spool.remove(name)", "pass", slow=True),
]  # fmt: skip


def run(campaign: Campaign) -> None:
    """Plants each and tells what noticed it; the campaign fails where nothing does."""
    tally = campaign.tally("planted bugs, all noticed")
    for number, bug in enumerate(BUGS):
        if bug.slow and campaign.share.every > 1:
            continue
        ended = run_child(lambda tell, n=number, bug=bug: _notice(campaign, n, bug))
        tally.tried += 1
        if ended.value:
            tally.note(f"{bug.name}: {ended.value[0]}")
        else:
            how = f"{ended.error}: {ended.message} ({ended.where})" if ended.error else "nothing"
            tally.fail(bug.name, f"was not noticed, {how}")


def _notice(campaign: Campaign, number: int, bug: Bug) -> list[str]:
    folder = campaign.folder / f"bug_{number}"
    folder.mkdir()
    inside = Campaign(folder, SHARE)  # its uninterrupted run is made without the bug
    bug.plant()
    with contextlib.suppress(EnoughError):
        bug.find(inside)
    return [failure for tally in inside.tallies.values() for failure in tally.failures]
