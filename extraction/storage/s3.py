"""A run's files in an S3 bucket, Amazon's or that of a compatible service.

Objects are published with `If-None-Match: *`, which S3 has supported since 2024. If the object
exists, S3 refuses with 412, and the object is compared with ours by size and crc32c. The client
(obstore) sends a checksum with every object, uploads large ones in parts, and retries transient
failures.

Credentials are those of boto3 where it is installed (profiles, SSO, roles), else those of the
environment or the machine. `AWS_ENDPOINT_URL` names a compatible service; it may be an http://
address.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import S3Store

from extraction.checksums import crc32c
from extraction.errors import StorageUnavailableError, StoreError, first_line
from extraction.storage import Content, FileInfo, pieces
from extraction.storage.names import check_name

CRC32C = "crc32c"
"""Attribute of every object that holds its crc32c, which S3's listing does not tell."""

TIMEOUT = "300s"
"""Time limit of one request: a part of an object, or a page of a listing."""


class S3Storage:
    """Objects below `s3://bucket/prefix`.

    Args:
        address: bucket and prefix.

    Raises:
        StoreError: the address does not name a bucket.
    """

    is_local = False

    def __init__(self, address: str):
        bucket, _, prefix = str(address).removeprefix("s3://").strip("/").partition("/")
        if not str(address).startswith("s3://") or not bucket:
            raise StoreError(f"{address!r} must look like s3://bucket/prefix")
        self.address = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._bucket, self._prefix = bucket, prefix
        self._opened: tuple[int, S3Store] | None = None
        _ = self._store  # so that wrong settings are refused now, not in mid-run

    @property
    def _store(self) -> S3Store:
        """The client of this process; a forked process cannot use its parent's threads."""
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            with self._explained():
                store = S3Store(
                    self._bucket,
                    prefix=self._prefix or None,
                    checksum_algorithm="SHA256",
                    client_options={"timeout": TIMEOUT, "allow_http": _is_plain_http()},
                    **_of_boto3(),
                )
            self._opened = process, store
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: all but the client, which is opened again when needed."""
        return vars(self) | {"_opened": None}

    def names(self, prefix: str = "") -> list[str]:
        """See `Storage.names`."""
        return sorted(self.infos(prefix))

    def infos(self, prefix: str = "") -> dict[str, FileInfo]:
        """See `Storage.infos`."""
        if prefix:
            check_name(prefix.removesuffix("/"))
        with self._explained():
            listed = obstore.list_with_delimiter(self._store, prefix=prefix or None)
        return {
            found["path"]: FileInfo(bytes=found["size"])
            for found in listed["objects"]
            if not found["path"].endswith("/")
        }

    def get(self, name: str) -> bytes:
        """See `Storage.get`."""
        with self._explained(name):
            return bytes(obstore.get(self._store, check_name(name)).bytes())

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """See `Storage.get_range`."""
        if length <= 0:
            return b""
        try:
            with self._explained(name):
                return bytes(
                    obstore.get_range(self._store, check_name(name), start=start, length=length)
                )
        except _BehindTheEndError:
            return b""

    def open_local(self, name: str) -> None:
        """See `Storage.open_local`."""
        return None

    def attributes(self, name: str) -> Mapping[str, str]:
        """See `CloudStorage.attributes`."""
        return self._head(name)[1]

    def info(self, name: str) -> FileInfo:
        """See `CloudStorage.info`."""
        size, attributes = self._head(name)
        return FileInfo(bytes=size, crc32c=attributes.get(CRC32C))

    def missing_permissions(self) -> list[str]:
        """Return an empty list: S3 cannot be asked for permissions in advance."""
        return []

    def put_new(
        self, name: str, data: Content, attributes: Mapping[str, str] | None = None
    ) -> None:
        """See `Storage.put_new`."""
        content = b"".join(pieces(data))
        try:
            self._put(name, content, attributes, mode="create")
        except FileExistsError:
            wanted = FileInfo(bytes=len(content), crc32c=crc32c(content))
            if self.info(name) != wanted:  # not our own object, whose answer was lost
                raise

    def replace(self, name: str, data: Content) -> None:
        """See `Storage.replace`."""
        self._put(name, b"".join(pieces(data)), None, mode="overwrite")

    def replace_all(self, files: Iterable[tuple[str, Content]]) -> None:
        """See `Storage.replace_all`."""
        for name, data in files:
            self.replace(name, data)

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        with contextlib.suppress(FileNotFoundError), self._explained(name):
            obstore.delete(self._store, check_name(name))

    def _put(
        self, name: str, content: bytes, attributes: Mapping[str, str] | None, mode: Any
    ) -> None:
        told = {**(attributes or {}), CRC32C: crc32c(content)}
        with self._explained(name):
            obstore.put(self._store, check_name(name), content, mode=mode, attributes=told)

    def _head(self, name: str) -> tuple[int, Mapping[str, str]]:
        """Return size and attributes of a file."""
        with self._explained(name):
            found = obstore.get(self._store, check_name(name), options={"head": True})
            return found.meta["size"], {str(key): value for key, value in found.attributes.items()}

    @contextlib.contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        """Turn the client's errors into ours; a missing object is FileNotFoundError."""
        try:
            yield
        except exceptions.AlreadyExistsError:
            raise FileExistsError(f"{self.address}/{name} exists") from None
        except (exceptions.BaseError, FileNotFoundError) as error:
            text = str(error)
            if "NoSuchBucket" in text:
                raise StoreError(f"{self.address}: the bucket does not exist; create it") from None
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{self.address}/{name}") from None
            if "416 Range Not Satisfiable" in text:
                raise _BehindTheEndError from None
            what = "could not be used"
            if isinstance(error, exceptions.PermissionDeniedError):
                what = "no permission to list, get, put or delete objects"
            elif isinstance(error, exceptions.UnauthenticatedError):
                what = "no valid credentials"
            raise StorageUnavailableError(f"{self.address}: {what}: {first_line(error)}") from None


class _BehindTheEndError(Exception):
    """A range begins at or after the end of a file."""


def _is_plain_http() -> bool:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return endpoint.startswith("http://")


def _of_boto3() -> dict[str, Any]:
    """Return region and credentials as boto3 finds them; empty without boto3 or credentials."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    found: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    return found | ({"region": session.region_name} if session.region_name else {})
