"""Buckets and objects: contents, generations, preconditions, checksums.

Only live versions are kept, as in a bucket without object versioning and soft delete. A write is
counted for ever, so that a test can see that an object was written once and not twice.
"""

import base64
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import google_crc32c

from tests.fake_gcs.exchange import ApiError

# Fields of an object's resource that a client may set; any other is refused, not ignored.
SETTABLE = frozenset(
    {
        "metadata",
        "contentType",
        "cacheControl",
        "contentDisposition",
        "contentLanguage",
        "customTime",
    }
)
_DEFAULT_FIELDS = {"contentType": "application/octet-stream"}


def crc32c(data: bytes) -> str:
    """CRC-32C as Google writes it: base64 of the four bytes, big endian."""
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def md5(data: bytes) -> str:
    """MD5 as Google writes it: base64 of the sixteen bytes."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@dataclass(frozen=True, kw_only=True)
class Version:
    """One generation of an object; `fields` holds the settable part of its resource."""

    bucket: str
    name: str
    data: bytes
    generation: int
    metageneration: int
    fields: Mapping[str, Any]
    crc32c: str
    md5: str
    created: str
    updated: str

    def resource(self, url: str) -> dict[str, Any]:
        """The object's resource, as the JSON API gives it (64-bit numbers as strings).

        Args:
            url: of the server, for the links.
        """
        path = f"storage/v1/b/{quote(self.bucket, safe='')}/o/{quote(self.name, safe='')}"
        etag = hashlib.sha256(f"{self.generation}/{self.metageneration}".encode()).digest()[:12]
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": f"{url}/{path}",
            "mediaLink": f"{url}/download/{path}?generation={self.generation}&alt=media",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "md5Hash": self.md5,
            "crc32c": self.crc32c,
            "etag": base64.b64encode(etag).decode(),
            "timeCreated": self.created,
            "updated": self.updated,
            **self.fields,
        }


@dataclass(frozen=True, kw_only=True)
class Preconditions:
    """What must be true of the live object for a request to be carried out.

    Attributes:
        generation_match: its generation; 0 means that there must be none.
        generation_not_match: not its generation.
        metageneration_match: its metageneration.
        metageneration_not_match: not its metageneration.
    """

    generation_match: int | None = None
    generation_not_match: int | None = None
    metageneration_match: int | None = None
    metageneration_not_match: int | None = None

    @classmethod
    def parse(cls, query: Mapping[str, str], prefix: str = "if") -> "Preconditions":
        """From the parameters `ifGenerationMatch` and so on; `ifSource...` by `prefix`."""

        def number(name: str) -> int | None:
            text = query.get(prefix + name)
            if text is None:
                return None
            if not text.isdecimal():
                raise ApiError(400, f"Invalid value for {prefix}{name}: {text!r}")
            return int(text)

        return cls(
            generation_match=number("GenerationMatch"),
            generation_not_match=number("GenerationNotMatch"),
            metageneration_match=number("MetagenerationMatch"),
            metageneration_not_match=number("MetagenerationNotMatch"),
        )

    def check(self, live: Version | None) -> None:
        """Raise 412, or 304 for a failed "not match", unless they hold; an absent object is 0."""
        generation = live.generation if live else 0
        metageneration = live.metageneration if live else 0
        for wanted, actual in (
            (self.generation_match, generation),
            (self.metageneration_match, metageneration),
        ):
            if wanted is not None and wanted != actual:
                message = "At least one of the pre-conditions you specified did not hold."
                raise ApiError(412, f"{message} Expected {wanted}, found {actual}.")
        for unwanted, actual in (
            (self.generation_not_match, generation),
            (self.metageneration_not_match, metageneration),
        ):
            if unwanted is not None and unwanted == actual:
                raise ApiError(304, "Not modified")


@dataclass(kw_only=True)
class Bucket:
    """A bucket: live objects by name, and how often each name was ever written.

    `permissions` are what the account is told to have; None: all. They hinder nothing.
    """

    name: str
    created: str
    permissions: set[str] | None = None
    objects: dict[str, Version] = field(default_factory=dict)
    writes: Counter[str] = field(default_factory=Counter)

    def resource(self, url: str) -> dict[str, Any]:
        """The bucket's resource, as the JSON API gives it."""
        return {
            "kind": "storage#bucket",
            "id": self.name,
            "name": self.name,
            "selfLink": f"{url}/storage/v1/b/{self.name}",
            "projectNumber": "123456789",
            "metageneration": "1",
            "location": "US",
            "locationType": "multi-region",
            "storageClass": "STANDARD",
            "etag": "CAE=",
            "timeCreated": self.created,
            "updated": self.created,
        }


class Store:
    """All buckets. Hold `lock` around every use: one request is carried out at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.buckets: dict[str, Bucket] = {}
        self._generation = 0

    def create_bucket(self, name: str) -> Bucket:
        """A new, empty bucket; 409 if there is one of that name."""
        if name in self.buckets:
            raise ApiError(409, f"Your previous request to create the bucket {name} succeeded.")
        self.buckets[name] = Bucket(name=name, created=_now())
        return self.buckets[name]

    def bucket(self, name: str) -> Bucket:
        """The bucket, or 404."""
        if name not in self.buckets:
            raise ApiError(404, "The specified bucket does not exist.")
        return self.buckets[name]

    def delete_bucket(self, name: str) -> None:
        """Remove an empty bucket; 409 if it holds objects."""
        if self.bucket(name).objects:
            raise ApiError(409, "The bucket you tried to delete is not empty.")
        del self.buckets[name]

    def get(self, bucket: str, name: str, generation: str | None = None) -> Version:
        """The live version, or 404; also 404 if `generation` is another than the live one."""
        live = self.bucket(bucket).objects.get(name)
        if live is None or (generation is not None and generation != str(live.generation)):
            raise ApiError(404, f"No such object: {bucket}/{name}")
        return live

    def insert(
        self,
        bucket: str,
        name: str,
        data: bytes,
        *,
        fields: Mapping[str, Any],
        preconditions: Preconditions,
        expected: Mapping[str, str],
    ) -> Version:
        """Write a new generation and make it the live one.

        Args:
            bucket: name of an existing bucket.
            name: of the object.
            data: its bytes.
            fields: settable fields of its resource.
            preconditions: on the version live until now.
            expected: checksums that the client claims, under `crc32c` and `md5Hash`.

        Raises:
            ApiError: 404 no such bucket, 412 or 304 precondition, 400 checksum; nothing changed.
        """
        home = self.bucket(bucket)
        preconditions.check(home.objects.get(name))
        actual = {"crc32c": crc32c(data), "md5Hash": md5(data)}
        for kind, claimed in expected.items():
            if claimed != actual[kind]:
                message = f"Provided {kind} {claimed!r} doesn't match calculated {actual[kind]!r}."
                raise ApiError(400, message)
        # Microseconds of the clock, as in the real service, but never twice the same.
        self._generation = max(self._generation + 1, time.time_ns() // 1000)
        now = _now()
        home.objects[name] = Version(
            bucket=bucket,
            name=name,
            data=data,
            generation=self._generation,
            metageneration=1,
            fields={**_DEFAULT_FIELDS, **fields},
            crc32c=actual["crc32c"],
            md5=actual["md5Hash"],
            created=now,
            updated=now,
        )
        home.writes[name] += 1
        return home.objects[name]

    def set_fields(self, version: Version, fields: Mapping[str, Any]) -> Version:
        """Replace the settable fields of a live object; its metageneration grows by one."""
        changed = replace(
            version,
            fields={**_DEFAULT_FIELDS, **fields},
            metageneration=version.metageneration + 1,
            updated=_now(),
        )
        self.bucket(version.bucket).objects[version.name] = changed
        return changed

    def delete(self, version: Version) -> None:
        """Remove a live object."""
        del self.bucket(version.bucket).objects[version.name]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
