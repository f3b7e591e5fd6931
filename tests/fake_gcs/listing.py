"""The list of a bucket's objects, page by page, and the `fields` parameter.

After https://cloud.google.com/storage/docs/json_api/v1/objects/list: a page holds at most
`maxResults` objects and prefixes together, in the order of their names. (Google's test bench
ignores paging, so this is the one part that its transcripts cannot check.)
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from tests.fake_gcs.exchange import ApiError
from tests.fake_gcs.objects import Bucket

LIST_PARAMETERS = frozenset(
    {
        "prefix",
        "delimiter",
        "includeTrailingDelimiter",
        "startOffset",
        "endOffset",
        "maxResults",
        "pageToken",
    }
)
_LARGEST_PAGE = 1000


def list_page(bucket: Bucket, query: Mapping[str, str], url: str) -> dict[str, Any]:
    """One page of `bucket`, as the JSON API gives it; empty lists are left out.

    Args:
        bucket: to list.
        query: of the request; `LIST_PARAMETERS` are obeyed.
        url: of the server, for the links.
    """
    size = min(_natural(query, "maxResults") or _LARGEST_PAGE, _LARGEST_PAGE)
    after = _decode_token(query["pageToken"]) if query.get("pageToken") else ""
    entries = [entry for entry in _entries(bucket, query) if entry[0] > after]
    page: dict[str, Any] = {"kind": "storage#objects"}
    items = [bucket.objects[key].resource(url) for key, kinds in entries[:size] if "item" in kinds]
    prefixes = [key for key, kinds in entries[:size] if "prefix" in kinds]
    if items:
        page["items"] = items
    if prefixes:
        page["prefixes"] = prefixes
    if len(entries) > size:
        page["nextPageToken"] = base64.b64encode(entries[size - 1][0].encode()).decode()
    return page


def _entries(bucket: Bucket, query: Mapping[str, str]) -> list[tuple[str, set[str]]]:
    """Names and common prefixes in order, each with what it is: "item", "prefix" or both."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    start, end = query.get("startOffset", ""), query.get("endOffset")
    trailing = query.get("includeTrailingDelimiter") == "true"
    entries: dict[str, set[str]] = {}
    for name in bucket.objects:
        if not name.startswith(prefix) or name < start or (end and name >= end):
            continue
        head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if found:
            entries.setdefault(prefix + head + found, set()).add("prefix")
        if not found or (trailing and name == prefix + head + found):
            entries.setdefault(name, set()).add("item")
    return sorted(entries.items(), key=lambda entry: entry[0])


def _natural(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not text.isdecimal():
        raise ApiError(400, f"Invalid value for {name}: {text!r}")
    return int(text)


def _decode_token(token: str) -> str:
    try:
        return base64.b64decode(token, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ApiError(400, f"Invalid page token: {token!r}") from error


def select_fields(document: Any, fields: str) -> Any:
    """The part of a JSON document that the `fields` parameter asks for.

    Args:
        document: an object, or a list of them, to each of which the selection applies.
        fields: such as `kind,items(name,size)`; empty for all.
    """
    if not fields:
        return document
    if isinstance(document, list):
        return [select_fields(item, fields) for item in document]
    wanted = _split_fields(fields)
    return {
        key: select_fields(value, wanted[key]) for key, value in document.items() if key in wanted
    }


def _split_fields(fields: str) -> dict[str, str]:
    """Names at the top level of a selection, each with the selection within it."""
    names, inner, depth, start = {}, "", 0, 0
    for i, char in enumerate(fields + ","):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            name, _, inner = fields[start:i].partition("(")
            names[name.strip()] = inner.removesuffix(")")
            start = i + 1
    if depth != 0:
        raise ApiError(400, f"Invalid field selection {fields}")
    return names
