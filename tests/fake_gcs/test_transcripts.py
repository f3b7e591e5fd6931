"""The fake answers as Google's test bench did, exchange by exchange, but for listed deviations."""

import base64
import json
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.fake_gcs.deviations import DEVIATIONS
from tests.fake_gcs.objects import crc32c
from tests.fake_gcs.server import FakeGcs
from tests.fake_gcs.transcripts import RECORDING, Answer, Replay, pattern, read_scenarios

SCENARIOS = read_scenarios() if RECORDING.exists() else {}
EXPECTED = {
    (deviation.scenario, step): deviation.status
    for deviation in DEVIATIONS
    for step in deviation.steps
}

# What the recording's notes say was there already: bucket, objects, and the step before which they
# came, None for the first. Payloads of one byte repeated in a pattern are given by length and seed.
BEFORE: dict[str, tuple[str, dict[str, bytes], str | None]] = {
    "list_prefix_delimiter": (
        "rec-list",
        {
            name: name.encode()
            for name in ("run/1/a", "run/1/b", "run/2/a", "run/2/", "run/top", "zeta", "Alpha")
        },
        "prefix, full items",
    ),
    "list_paging": ("rec-page", {f"p{i}": b"" for i in range(7)}, "page 1"),
    "client_upload_from_string_small": ("rec-clu", {}, None),
    "client_upload_10mib": ("rec-clb", {}, None),
    "client_download": ("rec-cld", {"o": pattern(5000, 97), "c": pattern(614400, 101)}, None),
    "client_list_exists_delete": (
        "rec-cle",
        {name: name.encode() for name in ("p/0", "p/1", "p/2", "p/3", "q/0")},
        None,
    ),
    "client_patch_compose_rewrite": ("rec-clp", {"a": b"aa", "b": b"bb"}, None),
    "client_upload_many_thread": ("rec-clm", {}, None),
    "client_background_bucket_get": ("rec-clg", {}, None),
    "client_upload_chunks_concurrently": ("rec-clx", {}, None),
    "client_retries": ("rec-clr", {"o": pattern(614400, 107)}, None),
}

# The bench promises only these ten bytes of the resource; the fake promises all of it, then breaks.
CUT_AFTER_10_BYTES = base64.b64encode(b'{"name": "').decode()
HEADERS = ("Range", "X-Goog-Metageneration", "X-Goog-Hash", "X-Goog-Stored-Content-Length")
FIELDS = ("kind", "bucket", "name", "crc32c", "md5Hash", "contentType", "cacheControl")
LISTS = {"items", "prefixes"}  # left out where empty: by us, not by the bench
NUMBERS = ("metageneration", "size", "objectSize")


def comparable(document: Any, generations: dict[str, str]) -> Any:
    """What of a JSON answer must agree, generations translated; the bench's own marks left out."""
    if "error" in document:
        return {"error": int(document["error"]["code"])}
    kept = {key: document[key] for key in FIELDS if key in document}
    # The bench leaves zeros out.
    kept |= {key: int(document.get(key, 0)) for key in NUMBERS}
    kept["prefixes"] = document.get("prefixes", [])
    kept["items"] = [comparable(item, generations) for item in document.get("items", [])]
    if "resource" in document:
        kept["resource"] = comparable(document["resource"], generations)
    if "generation" in document:
        kept["generation"] = generations.get(document["generation"], document["generation"])
    metadata = document.get("metadata", {})
    kept["metadata"] = {
        key: value
        for key, value in metadata.items()
        if not key.startswith(("x_emulator_", "x_testbench_"))
    }
    return kept


def learn_ids(replay: Replay, theirs: dict[str, Any], answer: Answer) -> None:
    """Pair generations and upload ids of two successful answers to the same request."""
    headers = theirs.get("headers", {})
    if "Location" in headers:
        pair = [urlsplit(headers["Location"]), urlsplit(answer.headers["Location"])]
        assert pair[0].path == pair[1].path
        replay.learn(*(parse_qs(location.query)["upload_id"][0] for location in pair))
    if "x-goog-generation" in headers and "X-Goog-Generation" in answer.headers:
        replay.learn(headers["x-goog-generation"], answer.headers["X-Goog-Generation"])
    recorded = (theirs.get("body") or {}).get("json")
    if isinstance(recorded, dict) and answer.end is None and answer.body:
        ours = json.loads(answer.body)
        pairs = [(recorded, ours), (recorded.get("resource", {}), ours.get("resource", {}))]
        for a, b in pairs + list(
            zip(recorded.get("items", []), ours.get("items", []), strict=False)
        ):
            if "generation" in a and "generation" in b:
                replay.learn(a["generation"], b["generation"])


def body_agrees(exchange: dict[str, Any], answer: Answer, replay: Replay) -> bool:
    """Whether the bodies agree as far as they must."""
    request, theirs = exchange["request"], exchange["response"]
    body = theirs.get("body")
    selected = "fields=" in request["path"]
    if body is None:
        return not answer.body
    if theirs["headers"]["Content-Type"].startswith("text/html") and theirs["status"] >= 400:
        return True  # the bench's web framework speaking
    if "json" in body:
        ours = json.loads(answer.body)
        if selected and ours.keys() - LISTS != body["json"].keys() - LISTS:
            return False
        theirs_kept, ours_kept = comparable(body["json"], replay.ours), comparable(ours, {})
        if request["path"].startswith("/upload/") and "contentType" not in theirs_kept:
            ours_kept.pop("contentType", None)  # the bench drops that of a media upload
        return theirs_kept == ours_kept
    return body["length"] == len(answer.body) and crc32c(answer.body) == (
        body["crc32c"] if "crc32c" in body else crc32c(_bytes(body))
    )


def _bytes(body: dict[str, Any]) -> bytes:
    return base64.b64decode(body["base64"]) if "base64" in body else body["text"].encode()


def agrees(exchange: dict[str, Any], answer: Answer, replay: Replay) -> bool:
    """Whether our answer to a request agrees with the recorded one."""
    request, theirs = exchange["request"], exchange["response"]
    wire = theirs.get("wire") or {}
    status = theirs["status"]
    if request["method"] == "DELETE" and status == 200:
        status = 204  # as documented
    if status != answer.status:
        return False
    if status is None:
        return wire["end"] == answer.end
    headers = {name.lower(): value for name, value in theirs["headers"].items()}
    names = (*HEADERS, "Content-Range") if status == 206 else HEADERS
    if any(headers.get(name.lower()) != answer.headers.get(name) for name in names):
        return False
    if (theirs.get("body") or {}).get("base64") == CUT_AFTER_10_BYTES:
        return answer.end == "eof" and len(answer.body) == 10
    if wire.get("end") == "client_closed":
        return True  # by a time limit that this replay does not have
    if wire.get("end"):
        if answer.end is None or wire["body_bytes_received"] != len(answer.body):
            return False
        if request["path"].startswith("/upload/"):
            return True  # the order of a resource's fields is free, so its first bytes are
    return status in (204, 304) or body_agrees(exchange, answer, replay)


@pytest.mark.skipif(not SCENARIOS, reason=f"no recording of Google's test bench at {RECORDING}")
@pytest.mark.parametrize("name", list(SCENARIOS) or ["none"])
def test_answers_agree_with_the_test_bench(name):
    bucket, objects, step = BEFORE.get(name, ("", {}, None))
    seen: Counter[str] = Counter()
    deviated = set()
    with FakeGcs() as server:
        replay = Replay(server=server)
        for exchange in SCENARIOS[name]["exchanges"]:
            if bucket and step in (None, exchange["step"]):
                if step is None:
                    server.create_bucket(bucket)
                for key, data in objects.items():
                    fields = {"contentType": "text/plain"} if name.startswith("client_") else {}
                    server.put(bucket, key, data, **fields)
                bucket = ""
            seen[exchange["step"]] += 1
            count = seen[exchange["step"]]
            label = exchange["step"] + (f" ({count})" if count > 1 else "")
            answer = replay.send(exchange)
            if answer is None:
                continue
            if (name, label) in EXPECTED:
                assert answer.status == EXPECTED[name, label], label
                assert not agrees(exchange, answer, replay), f"{label}: this is no deviation"
                deviated.add(label)
                continue
            if answer.status is not None and answer.status < 300:
                learn_ids(replay, exchange["response"], answer)
            assert agrees(exchange, answer, replay), (label, exchange["response"], answer)
        generations = [ours for _, ours in replay.generations()]
    assert generations == sorted(set(generations))
    assert deviated == {label for scenario, label in EXPECTED if scenario == name}
