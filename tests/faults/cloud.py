"""A run that uploads: killed between any two requests, and stopped while another goes on.

After a kill the run is resumed where its spool is, and on a machine that has none. A stopped host,
a zombie, wakes when another has finished the run; a request of its that was on the way comes then
too. Each object that is not derived must be written exactly once.
"""

import contextlib
import dataclasses
import functools
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import extraction.storage.gcs
import extraction.writing.upload  # noqa: F401 - before the forks
from tests.faults.children import Child, Work, run_child
from tests.faults.cloud_process import CloudProcess, Trap
from tests.faults.faulty_os import FaultyOs, install
from tests.faults.judge import Campaign, Share, Verdict
from tests.faults.kills import killed_at
from tests.faults.planned_run import PlannedRun, Tell, drive, tell_nobody

DERIVED = {"run/metadata.json", "run/outputs.jsonl"}


class CloudCampaign(Campaign):
    """Runs that go to buckets of their own.

    Args:
        cloud: where the buckets are.
        folder: for the spools.
        share: how much is tried.
        file_format: of the runs.
    """

    def __init__(self, cloud: CloudProcess, folder: Path, share: Share, file_format: str):
        self.cloud = cloud
        super().__init__(folder, share, file_format)

    @contextlib.contextmanager
    def case(self, **options) -> Iterator[PlannedRun]:
        """A run in a folder and a bucket of its own."""
        with super().case(**options) as run:
            bucket = run.folder.name.replace("_", "-")
            self.cloud.create_bucket(bucket)
            self.cloud.set_trap(None)
            yield dataclasses.replace(run, cloud=f"gs://{bucket}/run")
            self.cloud.drop_bucket(bucket)

    @contextlib.contextmanager
    def spool(self) -> Iterator[Path]:
        """The folder of another machine."""
        with super().case() as run:
            yield run.folder

    def files(self, run: PlannedRun) -> dict[str, bytes]:
        """What is in the bucket, under the names that it would have in folders."""
        names = {"run/outputs.jsonl": "outputs/outputs.jsonl"}
        return {
            names.get(name, name.replace("run/", "activations/", 1)): data
            for name, data in self.cloud.objects(_bucket(run)).items()
        }

    def look(self, run: PlannedRun, _: Tell = tell_nobody) -> Verdict:
        """Looks into the bucket and at what is left of the spool."""
        verdict = super().look(run)
        writes = self.cloud.writes(_bucket(run))
        again = {name: n for name, n in writes.items() if n != 1 and name not in DERIVED}
        problems = list(verdict.problems)
        if again:
            problems.append(f"written again: {again}")
        spool = sorted(str(p.relative_to(run.activations)) for p in run.activations.rglob("*.*"))
        left = [n for n in spool if n not in {"metadata.json", "_run/run.json", "_run/lock.00000"}]
        if left:
            problems.append(f"left in the spool: {left}")
        return dataclasses.replace(verdict, problems=problems)


def _bucket(run: PlannedRun) -> str:
    assert run.cloud is not None
    return run.cloud.split("/")[2]


def _trapped(cloud: CloudProcess, run: PlannedRun, number: int, when: str, sign: int) -> Work:
    def work(tell):
        cloud.set_trap(Trap(os.getpid(), number, when, sign))
        return drive(run, tell)

    return work


def requests(campaign: CloudCampaign) -> int:
    """How many requests a run makes."""
    with campaign.case() as run:
        assert run_child(functools.partial(drive, run)).error is None
        return campaign.cloud.count()


def kills_at_requests(campaign: CloudCampaign) -> None:
    """Between any two requests; then with the spool, and without it."""
    for number in range(1, requests(campaign) + 1):
        for place, (when, spool) in enumerate(
            (when, spool) for spool in ("kept", "lost") for when in ("before", "after")
        ):
            if (4 * number + place) % campaign.share.slow:
                continue
            tally = campaign.tally(f"SIGKILL at a request to the cloud, spool {spool}")
            with campaign.case() as run:
                work = _trapped(campaign.cloud, run, number, when, signal.SIGKILL)
                ended = run_child(work)
                campaign.cloud.set_trap(None)
                tally.note("killed" if ended.signal else "had finished")
                if ended.error:
                    tally.fail(f"request {number}", f"{ended.error}: {ended.message}")
                if spool == "lost":
                    shutil.rmtree(run.folder)
                    run.folder.mkdir()
                # What was committed to a spool is lost with it.
                said = [event for event in ended.said if event[0] == "finished"]
                run = dataclasses.replace(run, attempt=1)
                campaign.judge(tally, f"{when} request {number}", run, said)


def kills_at_spool_operations(campaign: CloudCampaign, first: int = 1) -> None:
    """At the spool's file operations, of which the last of a unit take it away.

    Args:
        campaign: to try them in.
        first: that is tried.
    """

    def work(tell):
        faulty = FaultyOs()
        install(faulty)
        drive(run)
        return faulty.count

    with campaign.case() as run:
        total = run_child(work).value
    tally = campaign.tally("SIGKILL at an operation of the spool")
    for number in range(first, total + 1, 2 * campaign.share.slow):
        with campaign.case() as run:
            ended = run_child(killed_at(run, number, "after"))
            said = [event for event in ended.said if event[0] == "finished"]
            run = dataclasses.replace(run, attempt=1)
            campaign.judge(tally, f"after operation {number}", run, said)


def zombies(campaign: CloudCampaign) -> None:
    """A host stops at a request, another finishes the run, and the first wakes."""
    generator = random.Random(5)
    for number in range(1, requests(campaign) + 1):
        for when in ("before", "after"):
            if (2 * number + (when == "after")) % campaign.share.slow == 0:
                with campaign.case() as run, campaign.spool() as folder:
                    other = dataclasses.replace(run, folder=folder, attempt=1)
                    _wake(campaign, run, other, (number, when), generator.random() < 0.5)


def _wake(
    campaign: CloudCampaign,
    run: PlannedRun,
    other: PlannedRun,
    at: tuple[int, str],
    wakes_first: bool,
) -> None:
    """A case: who sleeps, who finishes, at which request, and whether its answer comes later."""
    tally = campaign.tally("a host stopped at a request wakes when another has finished the run")
    case = f"{at[1]} request {at[0]}"
    zombie = Child(_trapped(campaign.cloud, run, *at, signal.SIGSTOP))
    tally.note("stopped" if zombie.wait_until_stopped() else "had finished")
    ended = run_child(functools.partial(drive, other))
    if ended.error or ended.signal:
        tally.fail(case, f"the other ended with {ended.error}: {ended.message}")
    before = campaign.files(run)
    if wakes_first:
        zombie.signal(signal.SIGCONT)
    campaign.cloud.release()
    zombie.signal(signal.SIGCONT)
    woken = zombie.wait()
    if woken.error:
        tally.fail(case, f"the zombie ended with {woken.error}: {woken.message}")
    after = campaign.files(run)
    changed = {n for n in {*before, *after} if before.get(n) != after.get(n)}
    if changed:
        tally.fail(case, f"the zombie changed {sorted(changed)}")
    campaign.count(tally, case, run_child(functools.partial(campaign.look, other)), [])


@contextlib.contextmanager
def in_cloud(campaign: Campaign) -> Iterator[CloudCampaign]:
    """The same campaign with a server."""
    with CloudProcess() as cloud:
        os.environ.update(cloud.environment(), GOOGLE_CLOUD_PROJECT="test")
        inside = CloudCampaign(cloud, campaign.folder, campaign.share, campaign.file_format)
        inside.tallies = campaign.tallies
        yield inside


PARTS = (kills_at_requests, kills_at_spool_operations, zombies)


def run(campaign: Campaign, parts: Sequence[Callable[[CloudCampaign], None]] = PARTS) -> None:
    """All of them, or some."""
    with in_cloud(campaign) as inside:
        for part in parts:
            part(inside)
