"""A disk of 4 MB that is full at any file, one without inodes, and a limit on file sizes.

The disk is a real one, in memory, in a mount namespace of its own (`unshare -rm`); where that is
not permitted only the limit is tried. A run waits while there is no room, on a clock that the
waiting moves; it ends with `StorageUnavailableError`, or goes on if room was made.
"""

import dataclasses
import functools
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from extraction.writing import disk_retry
from tests.faults.children import Ended, run_child
from tests.faults.failing_operations import QuickClock, check_end
from tests.faults.judge import Campaign
from tests.faults.planned_run import PlannedRun, drive

SKIPPED = "mounting is not permitted here"

SIZE = 4 << 20
MANY_INODES = 10_000
PAGE = 4096
WIDTH = 40_000
"""Of rows of which the disk cannot hold all."""

PAGES_OF_A_RUN, INODES_OF_A_RUN = 60, 60
"""More than a run needs; each of its files takes a page."""


class SmallDisk:
    """A file system in memory.

    Args:
        folder: where it appears.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._ballast = folder / "ballast"

    def mount(self) -> bool:
        """False where it is not permitted."""
        self.folder.mkdir()
        return self._mount(f"size={SIZE}") == 0

    def unmount(self) -> None:
        """Takes it away."""
        subprocess.run(["umount", str(self.folder)], check=True)

    def fill(self, pages: int) -> None:
        """Takes all room but some pages."""
        room = os.statvfs(self.folder)
        with self._ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, (room.f_bavail - pages) * room.f_frsize)

    def make_room(self) -> None:
        """Ends what `fill` and `limit_inodes` did, and gives more than there was."""
        self._ballast.unlink(missing_ok=True)
        assert self._mount(f"remount,size={8 * SIZE},nr_inodes={MANY_INODES}") == 0

    def shrink(self) -> None:
        """Back to the small size; the disk must be empty."""
        assert self._mount(f"remount,size={SIZE},nr_inodes={MANY_INODES}") == 0

    def limit_inodes(self, inodes: int) -> None:
        """Leaves some inodes free."""
        room = os.statvfs(self.folder)
        used = room.f_files - room.f_ffree
        assert self._mount(f"remount,size={SIZE},nr_inodes={used + inodes}") == 0

    def _mount(self, options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode


def patient_run(run: PlannedRun, clock: QuickClock, most: int | None = None) -> Ended:
    """A run in a child, on a clock that waiting moves, and with a limit on the size of files."""

    def work(tell):
        disk_retry.time = clock  # pyright: ignore
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return drive(run, tell)

    return run_child(work)


class FullDisk:
    """A campaign whose runs are on a small disk."""

    def __init__(self, campaign: Campaign, disk: SmallDisk, width: int = 4):
        self._disk = disk
        disk.make_room()
        self._campaign = Campaign(disk.folder, campaign.share, campaign.file_format, width)
        self._campaign.tallies = campaign.tallies

    def fills_up(self, case: str, fill: Callable[[], None]) -> None:
        """The run ends; when there is room it is resumed."""
        self._disk.shrink()
        tally = self._campaign.tally("a full disk of 4 MB")
        with self._campaign.case() as run:
            fill()
            ended = patient_run(run, QuickClock())
            check_end(tally, case, ended)
            standing = self._campaign.standing(run, ended.said)
            self._disk.make_room()
            resume = functools.partial(self._campaign.resumed, dataclasses.replace(run, attempt=1))
            self._campaign.count(tally, case, run_child(resume), standing)

    def waits(self, case: str, fill: Callable[[], None]) -> None:
        """Room is made while the run waits, and it goes on."""
        self._disk.shrink()
        tally = self._campaign.tally("a full disk, on which room is made while the run waits")

        def wake(slept: float) -> None:
            if slept > 100:
                self._disk.make_room()

        with self._campaign.case() as run:
            fill()
            ended = patient_run(run, QuickClock(wake))
            check_end(tally, case, ended)
            if ended.error and ended.said:
                tally.fail(case, "the run did not wait for room")
            self._disk.make_room()
            self._campaign.judge(tally, case, run, ended.said)


def on_small_disk(campaign: Campaign, disk: SmallDisk) -> None:
    """No room, and no inodes, from any file on."""
    step = campaign.share.every
    narrow = FullDisk(campaign, disk)
    for left in range(0, PAGES_OF_A_RUN, step):
        narrow.fills_up(f"{left} pages left", functools.partial(disk.fill, left))
        narrow.waits(f"{left} pages left", functools.partial(disk.fill, left))
    for left in range(0, INODES_OF_A_RUN, step):
        narrow.fills_up(f"{left} inodes left", functools.partial(disk.limit_inodes, left))
        narrow.waits(f"{left} inodes left", functools.partial(disk.limit_inodes, left))
    wide = FullDisk(campaign, disk, WIDTH)
    for left in range(16, SIZE // PAGE, 64 * step):
        wide.fills_up(f"{left} pages left for wide rows", functools.partial(disk.fill, left))


def with_limited_files(campaign: Campaign) -> None:
    """No file may grow beyond a limit, `ulimit -f`; then it is lifted."""
    tally = campaign.tally("a limit on the size of files")
    for limit in range(200, 5000, 100 * campaign.share.every):
        with campaign.case() as run:
            ended = patient_run(run, QuickClock(), most=limit)
            check_end(tally, f"{limit} bytes", ended)
            run = dataclasses.replace(run, attempt=1)
            campaign.judge(tally, f"{limit} bytes", run, ended.said)


def run(campaign: Campaign) -> None:
    """All of them; in a mount namespace of its own."""
    with_limited_files(campaign)
    disk = SmallDisk(campaign.folder / "disk")
    if disk.mount():
        try:
            on_small_disk(campaign, disk)
        finally:
            disk.unmount()
    else:
        skipped = campaign.tally("a full disk of 4 MB")
        skipped.note(SKIPPED)
