"""A run's files in a Google Cloud Storage bucket.

Objects are published with `if_generation_match=0`. A retry after a lost answer is therefore refused
with 412, and the object is recognised as our own by size and crc32c; nothing is ever written twice.
Transient failures are retried with jitter until `deadline`; permanent ones, such as a missing
permission, fail at once with a message that says what to do.

`STORAGE_EMULATOR_HOST` works as in Google's client.
"""

import base64
import contextlib
import os
import pickle
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import requests
from google.api_core import exceptions as api_errors
from google.api_core.retry import Retry
from google.auth import exceptions as auth_errors
from google.cloud import storage as google_storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from extraction.checksums import crc32c
from extraction.errors import StorageUnavailableError, StoreError, first_line
from extraction.setting_names import setting
from extraction.storage import Content, FileInfo, pieces
from extraction.storage.names import check_name

DEADLINE = 900.0
"""Seconds for which one operation is retried."""

REQUEST_TIMEOUT = (5, 60)
"""Seconds to connect, and to wait for an answer's next bytes."""

REPLACE_TRIES = 20
"""Attempts to replace a derived file while other processes keep replacing it."""

SENDS = 10
"""Attempts to send a file that arrives damaged."""

PERMISSIONS = [f"storage.objects.{action}" for action in ("create", "get", "list", "delete")]
"""Permissions that a run needs."""

PERMISSIONS_DEADLINE = 20.0
"""Seconds for which the question for permissions is retried; no run depends on the answer."""

CHUNK = 8 << 20
"""Bytes of one request of a resumable upload; files above this size are uploaded so."""


class GcsStorage:
    """Objects below `gs://bucket/prefix`.

    Args:
        address: bucket and prefix.
        client: a client of google-cloud-storage; None: one with the machine's own credentials.
        deadline: seconds for which one operation is retried.

    Raises:
        StoreError: the address does not name a bucket, or there are no credentials.
    """

    is_local = False

    def __init__(
        self,
        address: str,
        client: google_storage.Client | None = None,
        *,
        deadline: float = DEADLINE,
    ):
        name, _, prefix = str(address).removeprefix("gs://").strip("/").partition("/")
        if not str(address).startswith("gs://") or not name:
            raise StoreError(f"{address!r} must look like gs://bucket/prefix")
        self.address = f"gs://{name}/{prefix}" if prefix else f"gs://{name}"
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket_name = name
        self._given = client
        self._opened: tuple[int, google_storage.Client] | None = None
        _ = self._client  # so that missing credentials are refused now, not in mid-run
        retry = DEFAULT_RETRY.with_delay(initial=0.5, maximum=32.0, multiplier=2.0)
        self._options: dict[str, Any] = {
            "retry": retry.with_timeout(deadline),
            "timeout": REQUEST_TIMEOUT,
        }
        self._whole = Retry(predicate=_broke_off, initial=0.5, maximum=32.0, timeout=deadline)

    @property
    def _client(self) -> google_storage.Client:
        """The client of this process; a forked process cannot use its parent's connections."""
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            if self._given is not None and self._opened is not None:
                raise StoreError(
                    f"{self.address} was opened with a client argument, and that client cannot be"
                    " used in a forked process; call GcsStorage there"
                )
            with self._explained():
                self._opened = process, self._given or google_storage.Client()
        return self._opened[1]

    @property
    def _bucket(self) -> google_storage.Bucket:
        return self._client.bucket(self._bucket_name)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: all but the client, which is opened again when needed."""
        if self._given is not None:
            raise pickle.PicklingError(
                f"{self.address} was opened with a client argument, and that client cannot be"
                " pickled; open the storage without one"
            )
        return vars(self) | {"_opened": None}

    def names(self, prefix: str = "") -> list[str]:
        """See `Storage.names`."""
        return sorted(self.infos(prefix))

    def infos(self, prefix: str = "") -> dict[str, FileInfo]:
        """See `Storage.infos`."""
        if prefix:
            check_name(prefix.removesuffix("/"))
        with self._explained():
            return self._whole(self._list)(prefix)

    def _list(self, prefix: str) -> dict[str, FileInfo]:
        blobs = self._client.list_blobs(
            self._bucket,
            prefix=self._prefix + prefix,
            delimiter="/",
            fields="items(name,size,crc32c),nextPageToken",
            **self._options,
        )
        return {
            blob.name.removeprefix(self._prefix): _info(blob)
            for blob in blobs
            if not blob.name.endswith("/")  # "folders" that the console makes
        }

    def get(self, name: str) -> bytes:
        """See `Storage.get`."""
        return self._download(name)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """See `Storage.get_range`."""
        if length <= 0:
            return b""
        try:
            return self._download(name, start=start, end=start + length - 1)
        except api_errors.RequestRangeNotSatisfiable:  # begins at or after the end
            return b""

    def _download(self, name: str, **part: int) -> bytes:
        with self._explained(name):
            blob = self._blob(name)
            for _ in range(2):  # a download that arrives damaged is repeated once
                with contextlib.suppress(DataCorruption):
                    return blob.download_as_bytes(checksum="crc32c", **part, **self._options)
            raise StoreError(
                f"{self.address}/{name} arrived with a wrong checksum twice; try again, and run"
                f" `python -m extraction verify {self.address}` if it stays so"
            )

    def open_local(self, name: str) -> None:
        """See `Storage.open_local`."""
        return None

    def attributes(self, name: str) -> Mapping[str, str]:
        """See `CloudStorage.attributes`."""
        return self._stat(name).metadata or {}

    def info(self, name: str) -> FileInfo:
        """See `CloudStorage.info`."""
        return _info(self._stat(name))

    def missing_permissions(self) -> list[str]:
        """See `CloudStorage.missing_permissions`."""
        retry = self._options["retry"].with_timeout(PERMISSIONS_DEADLINE)
        with self._explained():
            granted = self._whole(self._bucket.test_iam_permissions)(
                PERMISSIONS, retry=retry, timeout=REQUEST_TIMEOUT[1]
            )
        return [name for name in PERMISSIONS if name not in granted]

    def put_new(
        self, name: str, data: Content, attributes: Mapping[str, str] | None = None
    ) -> None:
        """See `Storage.put_new`."""
        content = b"".join(pieces(data))
        blob = self._blob(name)
        blob.metadata = dict(attributes or {})
        try:
            self._upload(name, blob, content, generation=0)
        except api_errors.PreconditionFailed:
            if not self._is(name, content):
                raise FileExistsError(f"{self.address}/{name} exists") from None

    def replace(self, name: str, data: Content) -> None:
        """See `Storage.replace`."""
        content = b"".join(pieces(data))
        for tries in range(REPLACE_TRIES):
            try:
                generation = int(self._stat(name).generation or 0)
            except FileNotFoundError:
                generation = 0
            try:
                self._upload(name, self._blob(name), content, generation)
                return
            except api_errors.PreconditionFailed:  # written by another process, or by us
                with contextlib.suppress(FileNotFoundError):
                    if self._is(name, content):
                        return
                # Many hosts end at once; without jitter one may lose every time.
                time.sleep(random.uniform(0, min(0.01 * 2**tries, 2.0)))
        raise StorageUnavailableError(
            f"{self.address}/{name} was replaced by other processes {REPLACE_TRIES} times in a row;"
            " try again"
        )

    def replace_all(self, files: Iterable[tuple[str, Content]]) -> None:
        """See `Storage.replace_all`."""
        for name, data in files:
            self.replace(name, data)

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        with contextlib.suppress(FileNotFoundError), self._explained(name):
            self._blob(name).delete(**self._options)

    def _blob(self, name: str) -> google_storage.Blob:
        return self._bucket.blob(self._prefix + check_name(name))

    def _stat(self, name: str) -> google_storage.Blob:
        def ask() -> google_storage.Blob:
            blob = self._blob(name)
            blob.reload(**self._options)
            _info(blob)  # fails if the answer was empty
            return blob

        with self._explained(name):
            return self._whole(ask)()

    def _is(self, name: str, content: bytes) -> bool:
        """Return whether a file has this content."""
        wanted = FileInfo(bytes=len(content), crc32c=crc32c(content))
        return self.info(name) == wanted

    def _upload(
        self, name: str, blob: google_storage.Blob, content: bytes, generation: int
    ) -> None:
        # Set for uploads only: chunked downloads break on empty objects and skip checksums.
        blob.chunk_size = CHUNK if len(content) > CHUNK else None
        with self._explained():
            for left in reversed(range(SENDS)):
                try:
                    blob.upload_from_string(
                        content,
                        content_type="application/octet-stream",
                        if_generation_match=generation,
                        checksum="crc32c",
                        **self._options,
                    )
                    return
                except api_errors.BadRequest as error:
                    # Damaged on the way: the server found another checksum and stored nothing.
                    if not left or "crc32c" not in str(error).lower():
                        raise
                except requests.exceptions.JSONDecodeError:
                    # The answer broke off, after the client's own retries: what has arrived?
                    with contextlib.suppress(FileNotFoundError):
                        if self._is(name, content):
                            return
                    if not left:
                        raise

    @contextlib.contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        """Turn the client's errors into ours; a missing object is FileNotFoundError.

        A failed precondition and a range beyond the end pass through to the callers.
        """
        try:
            yield
        except (api_errors.PreconditionFailed, api_errors.RequestRangeNotSatisfiable):
            raise
        except api_errors.NotFound as error:
            if name is not None and "bucket does not exist" not in str(error):
                raise FileNotFoundError(f"{self.address}/{name}") from None
            raise StoreError(
                f"{self.address}: the bucket does not exist; create it, or correct"
                f" {setting('gcs_bucket')}"
            ) from None
        except (api_errors.Unauthorized, auth_errors.GoogleAuthError) as error:
            raise StorageUnavailableError(
                f"{self.address}: no valid credentials ({first_line(error)}); run"
                " `gcloud auth application-default login`, or use a service account"
            ) from None
        except api_errors.Forbidden as error:
            raise StorageUnavailableError(
                f"{self.address}: no permission ({first_line(error)}); the account needs"
                f" {', '.join(PERMISSIONS)} (roles/storage.objectUser)"
            ) from None
        except (
            api_errors.GoogleAPIError,
            InvalidResponse,
            DataCorruption,
            requests.exceptions.RequestException,
        ) as error:
            raise StorageUnavailableError(
                f"{self.address} could not be used: {first_line(error)}"
            ) from None


def _broke_off(error: BaseException) -> bool:
    """Return whether an answer ended early, a failure that Google's client does not retry.

    The client raises JSONDecodeError for half a document, AttributeError for an empty answer.
    """
    is_empty = isinstance(error, AttributeError) and str(error).startswith("'bytes' object")
    return is_empty or isinstance(error, requests.exceptions.JSONDecodeError)


def _info(blob: google_storage.Blob) -> FileInfo:
    known = base64.b64decode(blob.crc32c).hex() if blob.crc32c else None
    return FileInfo(bytes=int(blob.size or 0), crc32c=known)
