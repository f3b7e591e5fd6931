"""The part of Google Cloud Storage's JSON API that the project and its client library use.

`JsonApi.handle` carries a request out on a `Store`. What is not supported is refused with 501 or
405, never ignored: a parameter that a fake silently drops makes a test that proves nothing. Not
supported are object versioning, content encodings, compose, moveTo, glob matching, conditions on
etags, access control lists, batches and the XML API.
"""

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from tests.fake_gcs.exchange import ApiError, Request, Response, json_response, parse_json
from tests.fake_gcs.listing import LIST_PARAMETERS, list_page, select_fields
from tests.fake_gcs.objects import SETTABLE, Preconditions, Store, Version
from tests.fake_gcs.resumable import Session, corrupted, header_checksums

_EVERYWHERE = frozenset({"alt", "fields", "prettyPrint", "projection"})
_CONDITIONS = frozenset(
    {
        "ifGenerationMatch",
        "ifGenerationNotMatch",
        "ifMetagenerationMatch",
        "ifMetagenerationNotMatch",
    }
)
_SOURCE_CONDITIONS = frozenset(name.replace("if", "ifSource", 1) for name in _CONDITIONS)
_ONE_OBJECT = _CONDITIONS | {"generation"}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, kw_only=True)
class _Route:
    methods: str
    path: re.Pattern[str]
    parameters: frozenset[str]
    action: Callable[..., Response]


class JsonApi:
    """Carries requests out.

    Args:
        store: what they act on.
        url: of the server, for links and session addresses.
    """

    def __init__(self, store: Store, url: str):
        self.store = store
        self.url = url
        self.sessions: dict[str, Session] = {}
        upload = _CONDITIONS | {"uploadType", "upload_id", "name"}
        copy = _CONDITIONS | _SOURCE_CONDITIONS | {"sourceGeneration"}
        # The first route whose path and method match is taken; copies come before objects, whose
        # names may hold slashes.
        self._routes = [
            _Route(methods=methods, path=re.compile(path), parameters=parameters, action=action)
            for methods, path, parameters, action in (
                ("POST", "/storage/v1/b", frozenset({"project"}), self._create_bucket),
                ("GET", "/storage/v1/b/([^/]+)", frozenset(), self._get_bucket),
                ("DELETE", "/storage/v1/b/([^/]+)", frozenset(), self._delete_bucket),
                (
                    "GET",
                    "/storage/v1/b/([^/]+)/iam/testPermissions",
                    frozenset({"permissions"}),
                    self._test_permissions,
                ),
                ("GET", "/storage/v1/b/([^/]+)/o", LIST_PARAMETERS, self._list),
                ("POST PUT DELETE", "/upload/storage/v1/b/([^/]+)/o", upload, self._upload),
                (
                    "POST",
                    "/storage/v1/b/([^/]+)/o/(.+)/(copyTo|rewriteTo)/b/([^/]+)/o/(.+)",
                    copy,
                    self._copy,
                ),
                ("GET HEAD", "(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", _ONE_OBJECT, self._get),
                ("PATCH PUT", "/storage/v1/b/([^/]+)/o/(.+)", _ONE_OBJECT, self._set_fields),
                ("DELETE", "/storage/v1/b/([^/]+)/o/(.+)", _ONE_OBJECT, self._delete),
            )
        ]

    def handle(self, request: Request) -> Response:
        """The answer to a request; the store has changed when it returns."""
        with self.store.lock:
            try:
                route, values = self._route(request)
                return route.action(request, *values)
            except ApiError as error:
                return error.response()

    def _route(self, request: Request) -> tuple[_Route, list[str]]:
        matches = [
            (route, match)
            for route in self._routes
            if (match := route.path.fullmatch(request.path)) is not None
        ]
        if not matches:
            known = request.path.startswith(("/storage/", "/upload/", "/download/"))
            raise ApiError(404 if known else 501, f"The fake has no {request.path}")
        for route, match in matches:
            if request.method in route.methods.split():
                unknown = request.query.keys() - route.parameters - _EVERYWHERE
                if unknown or "If-Match" in request.headers or "If-None-Match" in request.headers:
                    raise ApiError(501, f"The fake does not support {sorted(unknown)} or etags")
                return route, [unquote(value) for value in match.groups()]
        raise ApiError(405, f"The fake has no {request.method} {request.path}")

    def _document(self, request: Request, document: dict[str, Any]) -> Response:
        return json_response(select_fields(document, request.query.get("fields", "")))

    # Buckets

    def _create_bucket(self, request: Request) -> Response:
        document = parse_json(request.body)
        if document.keys() - {"name", "location", "storageClass"}:
            raise ApiError(501, f"The fake's buckets have no {sorted(document)}")
        bucket = self.store.create_bucket(document["name"])
        return self._document(request, bucket.resource(self.url))

    def _get_bucket(self, request: Request, bucket: str) -> Response:
        return self._document(request, self.store.bucket(bucket).resource(self.url))

    def _test_permissions(self, request: Request, bucket: str) -> Response:
        granted = self.store.bucket(bucket).permissions
        asked = request.values("permissions")
        found = [name for name in asked if granted is None or name in granted]
        # Google's server leaves the field out when there are none.
        answer = {"kind": "storage#testIamPermissionsResponse"}
        return self._document(request, answer | ({"permissions": found} if found else {}))

    def _delete_bucket(self, request: Request, bucket: str) -> Response:
        self.store.delete_bucket(bucket)
        return Response(status=204)

    def _list(self, request: Request, bucket: str) -> Response:
        page = list_page(self.store.bucket(bucket), request.query, self.url)
        return self._document(request, page)

    # Uploads

    def _upload(self, request: Request, bucket: str) -> Response:
        self.store.bucket(bucket)
        if "upload_id" in request.query:
            return self._session(request)
        if request.method != "POST":
            raise ApiError(400, "There is no upload_id.")
        kind = request.query.get("uploadType")
        if kind == "resumable":
            return self._start_session(request, bucket)
        if kind == "multipart":
            document, data, content_type = request.parts
            fields, expected = _settable(document)
            if fields.setdefault("contentType", content_type) != content_type:
                raise ApiError(412, f"The content type is {fields['contentType']} and another.")
        elif kind == "media":
            document, data = {}, request.body
            fields = {"contentType": request.headers.get_content_type()}
            expected = header_checksums(request)
        else:
            raise ApiError(400, f"Invalid uploadType {kind!r}")
        name = self._name(request, document)
        if request.cut_at is not None:
            raise ApiError(503, "The connection broke while the body was sent.")
        version = self.store.insert(
            bucket,
            name,
            corrupted(data) if request.corrupt else data,
            fields=fields,
            preconditions=Preconditions.parse(request.query),
            expected=expected,
        )
        return self._document(request, version.resource(self.url))

    def _name(self, request: Request, document: Mapping[str, Any]) -> str:
        names = {request.query.get("name"), document.get("name")} - {None, ""}
        if len(names) != 1:
            raise ApiError(400, "The object needs one name, in the query or in the resource.")
        return str(names.pop())

    def _start_session(self, request: Request, bucket: str) -> Response:
        document = parse_json(request.body) if request.body else {}
        fields, expected = _settable(document)
        if "X-Upload-Content-Type" in request.headers:
            fields.setdefault("contentType", request.headers["X-Upload-Content-Type"])
        size = request.headers.get("X-Upload-Content-Length")
        name = self._name(request, document)
        upload_id = uuid.uuid4().hex
        self.sessions[upload_id] = Session(
            bucket=bucket,
            name=name,
            fields=fields,
            preconditions=Preconditions.parse(request.query),
            expected=expected,
            total=None if size is None else int(size),
        )
        named = "" if "name" in request.query else f"&name={quote(name, safe='')}"
        location = f"{self.url}{request.target}{named}&upload_id={upload_id}"
        return Response(status=200, headers={"Location": location})

    def _session(self, request: Request) -> Response:
        upload_id = request.query["upload_id"]
        if upload_id not in self.sessions:
            raise ApiError(404, f"There is no upload {upload_id}")
        if request.method == "DELETE":
            del self.sessions[upload_id]
            return Response(status=499)
        session = self.sessions[upload_id]
        version = session.receive(self.store, request)
        if version is not None:
            return json_response(version.resource(self.url))
        held = len(session.received)
        return Response(status=308, headers={"Range": f"bytes=0-{held - 1}"} if held else {})

    # Objects

    def _find(self, request: Request, bucket: str, name: str) -> Version:
        version = self.store.get(bucket, name, request.query.get("generation"))
        Preconditions.parse(request.query).check(version)
        return version

    def _get(self, request: Request, bucket: str, name: str) -> Response:
        version = self._find(request, bucket, name)
        if request.query.get("alt") == "media":
            return _media(version, request.headers.get("Range") or "")
        return self._document(request, version.resource(self.url))

    def _set_fields(self, request: Request, bucket: str, name: str) -> Response:
        version = self._find(request, bucket, name)
        changes = parse_json(request.body)
        metadata = changes.get("metadata")
        if request.method == "PATCH":
            if metadata is not None:
                changes["metadata"] = {**version.fields.get("metadata", {}), **metadata}
            changes = {**version.fields, **changes}
        fields, _ = _settable(changes)
        version = self.store.set_fields(version, fields)
        return self._document(request, version.resource(self.url))

    def _delete(self, request: Request, bucket: str, name: str) -> Response:
        self.store.delete(self._find(request, bucket, name))
        return Response(status=204)

    def _copy(
        self, request: Request, bucket: str, name: str, verb: str, to_bucket: str, to_name: str
    ) -> Response:
        source = self.store.get(bucket, name, request.query.get("sourceGeneration"))
        Preconditions.parse(request.query, prefix="ifSource").check(source)
        if request.body and parse_json(request.body):
            raise ApiError(501, "The fake copies objects as they are, with all their metadata")
        copy = self.store.insert(
            to_bucket,
            to_name,
            source.data,
            fields=source.fields,
            preconditions=Preconditions.parse(request.query),
            expected={},
        ).resource(self.url)
        if verb == "copyTo":
            return self._document(request, copy)
        size = {"totalBytesRewritten": copy["size"], "objectSize": copy["size"]}
        document = {"kind": "storage#rewriteResponse", "done": True, **size, "resource": copy}
        return self._document(request, document)


def _settable(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settable fields of a resource sent by a client, and the checksums that it claims."""
    checksums = {kind: document[kind] for kind in ("crc32c", "md5Hash") if document.get(kind)}
    unknown = document.keys() - SETTABLE - {"name", "bucket", "crc32c", "md5Hash"}
    if unknown:
        raise ApiError(501, f"The fake's objects have no {sorted(unknown)}")
    fields = {key: value for key, value in document.items() if key in SETTABLE and value}
    if "metadata" in fields:  # null removes a key
        kept = {key: value for key, value in fields["metadata"].items() if value is not None}
        fields["metadata"] = kept
    return fields, checksums


def _media(version: Version, wanted: str) -> Response:
    """An object's bytes; `wanted` is the Range header, which is ignored if it is malformed."""
    headers = {
        "Content-Type": version.fields["contentType"],
        "X-Goog-Generation": str(version.generation),
        "X-Goog-Metageneration": str(version.metageneration),
        "X-Goog-Hash": f"crc32c={version.crc32c},md5={version.md5}",
        "X-Goog-Storage-Class": "STANDARD",
        "X-Goog-Stored-Content-Encoding": "identity",
        "X-Goog-Stored-Content-Length": str(len(version.data)),
    }
    size = len(version.data)
    match = _RANGE.fullmatch(wanted)
    if match is None or match.groups() == ("", ""):
        return Response(status=200, headers=headers, body=version.data)
    if match[1]:
        first = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
    else:
        first, stop = max(size - int(match[2]), 0), size
    if first >= size:
        raise ApiError(416, "Request range not satisfiable")
    if first >= stop:  # the last byte lies before the first: malformed, so ignored (RFC 9110)
        return Response(status=200, headers=headers, body=version.data)
    headers["Content-Range"] = f"bytes {first}-{stop - 1}/{size}"
    return Response(status=206, headers=headers, body=version.data[first:stop])
