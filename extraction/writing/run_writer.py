"""Writing a run: claim it, commit to it, upload it, finish it.

With an upload the local folder is a spool, from which each file is removed after its upload, and
the bucket's commit records say which batches exist. Without an upload, the folder's records do.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from extraction.errors import ExistingRunError
from extraction.run.identity import RunIdentity, RunLock, begin, check_identity
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.rows import RowBlock
from extraction.run.totals import RunTotals
from extraction.run.vocabulary import Vocabulary
from extraction.setting_names import setting
from extraction.storage import CloudStorage, Storage, open_cloud, open_storage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata
from extraction.writing.places import places

SPOOL_BYTES = 8_000_000_000


class RunWriter:
    """Writes the batches of one process of a run.

    Args:
        address: a folder, `gs://bucket/prefix`, or an open `Storage`.
        identity: identity of the run.
        upload_to: `gs://bucket/prefix` to upload to, if `address` is a folder.
        resume: whether the run may exist already, and is then continued.
        process: number of this process among those of the run, from 0.
        spool_bytes: most bytes that may wait to be uploaded.
        explaining: see `check_identity`.

    Attributes:
        identity: identity of the run; after `begun` that of the run which is continued.
        storage: the storage whose commit records count: the bucket, or the folder.

    Raises:
        StoreError: the folder or the bucket cannot be used, or holds another run.
    """

    def __init__(
        self,
        address: str | Path | Storage,
        identity: RunIdentity,
        *,
        upload_to: str | None = None,
        resume: bool = False,
        process: int = 0,
        spool_bytes: int = SPOOL_BYTES,
        explaining: Mapping[str, Sequence[str]] | None = None,
    ):
        if isinstance(address, str | Path):
            folder, upload_to = places(address, upload_to)
            self._spool = open_storage(folder)
        else:
            self._spool = address
        self._cloud: CloudStorage | None = None if upload_to is None else open_cloud(upload_to)
        self.storage: Storage = self._cloud or self._spool
        self.identity = identity
        self._resume, self._process, self._spool_bytes = resume, process, spool_bytes
        identity.to_json()  # refuses settings that JSON cannot hold before any batch is computed
        self._committer = Committer(
            self._spool, identity.hook_points, identity.file_format, identity.dtype
        )
        self._uploader: Any = None
        for place in self._places():
            check_identity(
                place,
                identity,
                resume=resume,
                exclusive=isinstance(place, LocalStorage),  # there the lock keeps others out
                explaining=explaining,
            )

    def _places(self) -> list[Storage]:
        return [self._spool] if self._cloud is None else [self._spool, self._cloud]

    @contextlib.contextmanager
    def begun(self, *, first: bool = True) -> Iterator[None]:
        """Claim the run for a `with` block, whose end waits for all uploads.

        Args:
            first: whether this process begins the run; exactly one process does, before the others.

        Raises:
            ExistingRunError: another process writes there, or was quicker.
        """
        with contextlib.ExitStack() as stack:
            self._claim(stack, first)
            yield

    def _claim(self, stack: contextlib.ExitStack, first: bool) -> None:
        if isinstance(self._spool, LocalStorage):
            lock = RunLock(self._spool.folder, self._process)
            stack.callback(lock.release)
            if first:
                self._spool.remove_left_overs()
        # First the storage whose records count; the spool then gets the same identity.
        for place in reversed(self._places()):
            found = begin(place, self.identity, exclusive=first and isinstance(place, LocalStorage))
            if found.run_id == self.identity.run_id:
                continue
            if place is not self.storage:
                raise ExistingRunError(
                    f"{place.address} holds another run than {self.storage.address}; nothing was"
                    f" changed; choose another {setting('activations_dir')}"
                )
            if first and not self._resume:
                raise ExistingRunError(
                    f"another process began a run in {place.address} at the same time; choose"
                    f" another {setting('activations_dir')}"
                )
            self.identity = found
        if self._cloud is not None:
            from extraction.writing.upload import Uploader  # only where there is a cloud

            uploader = Uploader(
                self._spool, self._cloud, self.identity.run_id, spool_bytes=self._spool_bytes
            )
            self._uploader = stack.enter_context(uploader)
            self._uploader.add_left_over()

    def committed(self) -> set[int]:
        """Return the ids of batches that exist or wait to be uploaded."""
        # The spool first: a batch that is uploaded in between is then found in one of the two.
        return CommitLog(self._spool).batch_ids() | CommitLog(self.storage).batch_ids()

    def commit(
        self,
        batch_id: int,
        block: RowBlock | None,
        outputs: Sequence[Mapping[str, Any]] | None = None,
        n_sequences: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> CommitRecord:
        """Make a batch exist in the folder; see `Committer.commit`."""
        return self._committer.commit(batch_id, block, outputs, n_sequences, vocabulary)

    def upload(self, record: CommitRecord) -> None:
        """Upload a batch of the spool to the bucket in the background, if there is a bucket.

        Raises:
            StoreError: an earlier upload failed.
        """
        if self._uploader is not None:
            self._uploader.add(record)

    def write_metadata(
        self, totals: RunTotals | None = None, *, here_too: bool = False
    ) -> RunTotals:
        """Write `metadata.json` of all committed batches, and return their totals.

        Args:
            totals: those of an earlier call, which are brought up to date.
            here_too: also write it to the spool.
        """
        copies = [self._spool] if here_too and self._cloud is not None else []
        return write_metadata(self.storage, totals, copies)
