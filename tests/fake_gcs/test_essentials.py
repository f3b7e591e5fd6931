"""What a bucket server must do, written down by hand: no recording and no client are needed."""

import base64
import json
from email.message import Message
from typing import Any

import pytest

from tests.fake_gcs.exchange import Request, Response
from tests.fake_gcs.json_api import JsonApi
from tests.fake_gcs.objects import Store, crc32c
from tests.fake_gcs.resumable import CHUNK_MULTIPLE

OBJECTS = "/storage/v1/b/b/o"
UPLOAD = "/upload/storage/v1/b/b/o"
DIGITS_CRC32C = base64.b64encode(bytes.fromhex("e3069283")).decode()  # of b"123456789", RFC 3720
DIGITS_MD5 = base64.b64encode(bytes.fromhex("25f9e794323b453885f5181f1b624d0b")).decode()


@pytest.fixture
def api():
    """The API of a store with the empty bucket "b"."""
    store = Store()
    store.create_bucket("b")
    return JsonApi(store, "http://fake")


def ask(
    api: JsonApi, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Response:
    message = Message()
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        message[name] = value
    return api.handle(Request(method=method, target=target, headers=message, body=body))


def insert(api: JsonApi, name: str, data: bytes, query: str = "", **resource: Any) -> Response:
    document = json.dumps({"name": name, **resource}).encode()
    head = b"--B\r\ncontent-type: application/json\r\n\r\n" + document
    body = head + b"\r\n--B\r\ncontent-type: text/plain\r\n\r\n" + data + b"\r\n--B--"
    headers = {"Content-Type": 'multipart/related; boundary="B"'}
    return ask(api, "POST", f"{UPLOAD}?uploadType=multipart{query}", body, headers)


def put(
    api: JsonApi, location: str, content_range: str, body: bytes = b"", **more: str
) -> Response:
    target = location.removeprefix("http://fake")
    return ask(api, "PUT", target, body, {"Content-Range": content_range, **more})


def start(api: JsonApi, name: str, query: str = "", **resource: Any) -> str:
    body = json.dumps(resource).encode()
    response = ask(api, "POST", f"{UPLOAD}?uploadType=resumable&name={name}{query}", body)
    assert response.status == 200
    return response.headers["Location"]


def document(response: Response) -> dict[str, Any]:
    return json.loads(response.body)


def reason(response: Response) -> tuple[int, str]:
    error = document(response)["error"]
    assert error["code"] == response.status
    return response.status, error["errors"][0]["reason"]


def test_an_insert_answers_with_the_resource(api):
    response = insert(api, "a/b", b"123456789", metadata={"run": "7"})
    assert response.status == 200
    resource = document(response)
    assert resource["name"] == "a/b"
    assert resource["size"] == "9"
    assert resource["crc32c"] == DIGITS_CRC32C
    assert resource["md5Hash"] == DIGITS_MD5
    assert resource["contentType"] == "text/plain"
    assert resource["metadata"] == {"run": "7"}
    assert resource["metageneration"] == "1"
    assert len(resource["generation"]) == 16
    assert document(ask(api, "GET", f"{OBJECTS}/a%2Fb")) == resource


def test_if_generation_match_0_writes_once(api):
    first = document(insert(api, "x", b"one", "&ifGenerationMatch=0"))
    assert reason(insert(api, "x", b"two", "&ifGenerationMatch=0")) == (412, "conditionNotMet")
    assert document(ask(api, "GET", f"{OBJECTS}/x")) == first
    assert api.store.bucket("b").writes["x"] == 1


def test_generations_grow_and_guard_overwrites(api):
    old = document(insert(api, "x", b"one"))["generation"]
    new = document(insert(api, "x", b"two", f"&ifGenerationMatch={old}"))["generation"]
    assert int(new) > int(old)
    assert insert(api, "x", b"three", f"&ifGenerationMatch={old}").status == 412
    assert insert(api, "y", b"three", f"&ifGenerationMatch={old}").status == 412
    assert insert(api, "y", b"three", "&ifMetagenerationMatch=1").status == 412
    assert insert(api, "x", b"three", f"&ifGenerationNotMatch={new}").status == 304
    assert insert(api, "x", b"three", "&ifGenerationMatch=yes").status == 400
    assert ask(api, "GET", f"{OBJECTS}/x?alt=media").body == b"two"
    assert reason(ask(api, "GET", f"{OBJECTS}/x?generation={old}")) == (404, "notFound")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_reads_deletes_and_patches_obey_preconditions(api, method):
    generation = document(insert(api, "x", b"one"))["generation"]
    for condition, status in {
        "ifGenerationMatch=1": 412,
        "ifMetagenerationMatch=2": 412,
        f"ifGenerationNotMatch={generation}": 304,
    }.items():
        assert ask(api, method, f"{OBJECTS}/x?{condition}", b"{}").status == status
    missing = ask(api, method, f"{OBJECTS}/y?ifGenerationMatch={generation}", b"{}")
    assert reason(missing) == (404, "notFound")
    right = f"ifGenerationMatch={generation}&ifMetagenerationMatch=1"
    assert ask(api, method, f"{OBJECTS}/x?{right}", b"{}").status in (200, 204)


def test_a_wrong_checksum_stores_nothing(api):
    insert(api, "x", b"kept")
    for wrong in ({"crc32c": DIGITS_CRC32C}, {"md5Hash": DIGITS_MD5}):
        assert reason(insert(api, "x", b"other", **wrong)) == (400, "invalid")
        assert reason(insert(api, "y", b"other", **wrong)) == (400, "invalid")
    right = insert(api, "z", b"123456789", crc32c=DIGITS_CRC32C, md5Hash=DIGITS_MD5)
    assert right.status == 200
    assert [key for key in api.store.bucket("b").objects] == ["x", "z"]
    assert ask(api, "GET", f"{OBJECTS}/x?alt=media").body == b"kept"


def test_a_media_upload_obeys_its_hash_header(api):
    target = f"{UPLOAD}?uploadType=media&name=m"
    wrong, right = f"crc32c={crc32c(b'other')}", f"crc32c={DIGITS_CRC32C},md5={DIGITS_MD5}"
    assert ask(api, "POST", target, b"123456789", {"X-Goog-Hash": wrong}).status == 400
    assert ask(api, "POST", target, b"123456789", {"X-Goog-Hash": right}).status == 200


def test_a_download_carries_hashes_and_generation(api):
    generation = document(insert(api, "x", b"123456789"))["generation"]
    response = ask(api, "GET", f"/download{OBJECTS}/x?alt=media")
    assert (response.status, response.body) == (200, b"123456789")
    assert response.headers["X-Goog-Hash"] == f"crc32c={DIGITS_CRC32C},md5={DIGITS_MD5}"
    assert response.headers["X-Goog-Generation"] == generation
    assert "Content-Range" not in response.headers


@pytest.mark.parametrize(
    ("wanted", "status", "body", "content_range"),
    [
        ("bytes=0-2", 206, b"123", "bytes 0-2/9"),
        ("bytes=7-", 206, b"89", "bytes 7-8/9"),
        ("bytes=7-99", 206, b"89", "bytes 7-8/9"),
        ("bytes=-2", 206, b"89", "bytes 7-8/9"),
        ("bytes=-99", 206, b"123456789", "bytes 0-8/9"),
        ("bytes=5-2", 200, b"123456789", None),
        ("lines=0-2", 200, b"123456789", None),
        ("bytes=9-", 416, None, None),
    ],
)
def test_ranges(api, wanted, status, body, content_range):
    insert(api, "x", b"123456789")
    response = ask(api, "GET", f"{OBJECTS}/x?alt=media", headers={"Range": wanted})
    assert response.status == status
    assert response.headers.get("Content-Range") == content_range
    assert body in (None, response.body)


def test_a_resumable_upload_in_chunks(api):
    data = bytes(range(256)) * 2048  # two chunks
    location = start(api, "big", "&ifGenerationMatch=0", metadata={"k": "v"})
    assert put(api, location, "bytes */*").headers == {}
    first = put(api, location, f"bytes 0-{CHUNK_MULTIPLE - 1}/*", data[:CHUNK_MULTIPLE])
    held = f"bytes=0-{CHUNK_MULTIPLE - 1}"
    assert (first.status, first.headers["Range"]) == (308, held)
    query = put(api, location, f"bytes */{len(data)}")
    assert (query.status, query.headers["Range"]) == (308, held)
    assert ask(api, "GET", f"{OBJECTS}/big").status == 404
    span = f"bytes {CHUNK_MULTIPLE}-{len(data) - 1}/{len(data)}"
    last = put(
        api, location, span, data[CHUNK_MULTIPLE:], **{"X-Goog-Hash": f"crc32c={crc32c(data)}"}
    )
    assert last.status == 200
    assert document(last)["metadata"] == {"k": "v"}
    assert document(last)["crc32c"] == crc32c(data)
    assert put(api, location, "bytes */*").body == last.body
    assert put(api, location, span, data[CHUNK_MULTIPLE:]).body == last.body
    assert api.store.bucket("b").writes["big"] == 1


def test_bytes_sent_twice_are_taken_once(api):
    data = bytes(range(256)) * 1024
    location = start(api, "x")
    put(api, location, f"bytes 0-{CHUNK_MULTIPLE - 1}/*", data)
    whole = data + b"tail"
    assert put(api, location, f"bytes 0-{len(whole) - 1}/{len(whole)}", whole).status == 200
    assert ask(api, "GET", f"{OBJECTS}/x?alt=media").body == whole


def test_a_lost_race_ends_the_session(api):
    location = start(api, "x", "&ifGenerationMatch=0")
    insert(api, "x", b"the other writer's")
    assert put(api, location, "bytes 0-3/4", b"mine").status == 412
    assert put(api, location, "bytes */4").status == 412
    assert ask(api, "GET", f"{OBJECTS}/x?alt=media").body == b"the other writer's"


def test_a_wrong_checksum_ends_the_session(api):
    location = start(api, "x", crc32c=DIGITS_CRC32C)
    assert put(api, location, "bytes 0-3/4", b"data").status == 400
    assert put(api, location, "bytes */4").status == 400
    assert ask(api, "GET", f"{OBJECTS}/x").status == 404


@pytest.mark.parametrize(
    ("content_range", "body"),
    [
        ("bytes 0-4/10", b"x" * 5),  # neither the last nor a multiple of 256 KiB
        ("bytes 5-9/10", b"x" * 5),  # a gap
        ("bytes 0-9/10", b"x" * 5),  # the body is shorter
        ("bytes 0-9/5", b"x" * 10),  # beyond the total
        ("bytes 0-19/20", b"x" * 20),  # another total than the start's
        ("octets 0-9/10", b"x" * 10),
    ],
)
def test_chunks_that_do_not_fit_are_refused(api, content_range, body):
    target = f"{UPLOAD}?uploadType=resumable&name=x"
    location = ask(api, "POST", target, headers={"X-Upload-Content-Length": "10"}).headers[
        "Location"
    ]
    assert put(api, location, content_range, body).status == 400
    assert put(api, location, "bytes 0-9/10", b"x" * 10).status == 200


def test_a_cancelled_session_is_gone(api):
    location = start(api, "x").removeprefix("http://fake")
    assert ask(api, "DELETE", location).status == 499
    assert ask(api, "PUT", location, b"data").status == 404
    assert ask(api, "DELETE", location).status == 404


def names(page: dict[str, Any]) -> list[str]:
    return [item["name"] for item in page.get("items", [])]


def test_lists_by_prefix_and_delimiter(api):
    for name in ("run/1/a", "run/1/b", "run/2/", "run/top", "zeta", "Alpha"):
        insert(api, name, b"")
    everything = document(ask(api, "GET", OBJECTS))
    assert names(everything) == ["Alpha", "run/1/a", "run/1/b", "run/2/", "run/top", "zeta"]
    below = document(ask(api, "GET", f"{OBJECTS}?prefix=run%2F&delimiter=%2F"))
    assert names(below) == ["run/top"]
    assert below["prefixes"] == ["run/1/", "run/2/"]
    part = document(ask(api, "GET", f"{OBJECTS}?startOffset=run/1/b&endOffset=run/top"))
    assert names(part) == ["run/1/b", "run/2/"]
    assert document(ask(api, "GET", f"{OBJECTS}?prefix=none")) == {"kind": "storage#objects"}
    chosen = document(ask(api, "GET", f"{OBJECTS}?fields=items(name,size),nextPageToken&prefix=z"))
    assert chosen == {"items": [{"name": "zeta", "size": "0"}]}


def test_pages_hold_every_object_and_prefix_once(api):
    for i in range(7):
        insert(api, f"p{i}", b"")
        insert(api, f"p{i}/below", b"")
    query, seen, prefixes, sizes = f"{OBJECTS}?delimiter=/&maxResults=4", [], [], []
    page = document(ask(api, "GET", query))
    while True:
        seen += names(page)
        prefixes += page.get("prefixes", [])
        sizes.append(len(names(page)) + len(page.get("prefixes", [])))
        if "nextPageToken" not in page:
            break
        insert(api, "a new object before the page", b"")  # must not shift what follows
        page = document(ask(api, "GET", f"{query}&pageToken={page['nextPageToken']}"))
    assert seen == [f"p{i}" for i in range(7)]
    assert prefixes == [f"p{i}/" for i in range(7)]
    assert sizes == [4, 4, 4, 2]
    assert ask(api, "GET", f"{OBJECTS}?pageToken=%00").status == 400


def test_a_patch_changes_metadata_and_metageneration_only(api):
    before = document(insert(api, "x", b"data", metadata={"a": "1", "b": "2"}))
    body = json.dumps({"metadata": {"b": None, "c": "3"}}).encode()
    after = document(ask(api, "PATCH", f"{OBJECTS}/x?ifMetagenerationMatch=1", body))
    assert after["metadata"] == {"a": "1", "c": "3"}
    assert after["metageneration"] == "2"
    assert after["generation"] == before["generation"]
    assert ask(api, "PATCH", f"{OBJECTS}/x?ifMetagenerationMatch=1", body).status == 412


def test_a_rewrite_copies_under_a_precondition(api):
    insert(api, "x", b"data", metadata={"a": "1"})
    target = f"{OBJECTS}/x/rewriteTo/b/b/o/y?ifGenerationMatch=0"
    copied = document(ask(api, "POST", target))
    assert copied["done"]
    assert copied["resource"]["metadata"] == {"a": "1"}
    assert ask(api, "POST", target).status == 412


def test_what_is_missing_is_404(api):
    assert reason(ask(api, "GET", "/storage/v1/b/absent")) == (404, "notFound")
    assert reason(ask(api, "GET", "/storage/v1/b/absent/o")) == (404, "notFound")
    assert reason(ask(api, "GET", f"{OBJECTS}/absent?alt=media")) == (404, "notFound")
    assert reason(ask(api, "DELETE", f"{OBJECTS}/absent")) == (404, "notFound")
    absent = ask(api, "POST", "/upload/storage/v1/b/absent/o?uploadType=media&name=x", b"data")
    assert reason(absent) == (404, "notFound")


def test_what_is_not_supported_is_refused_and_not_ignored(api):
    insert(api, "x", b"data")
    assert ask(api, "GET", f"{OBJECTS}?versions=true").status == 501
    assert ask(api, "GET", f"{OBJECTS}/x", headers={"If-Match": "e"}).status == 501
    assert insert(api, "x", b"data", contentEncoding="gzip").status == 501
    versioned = b'{"name": "v", "versioning": {"enabled": true}}'
    assert ask(api, "POST", "/storage/v1/b?project=p", versioned).status == 501
    assert ask(api, "POST", f"{OBJECTS}/x/compose", b"{}").status == 405
    assert ask(api, "PUT", "/b/x", b"data").status == 501
