"""Where the fake answers otherwise than the recorded test bench, and why.

Two reasons are good: the service is documented, or known by the recording's notes, to do otherwise
than its bench; or the fake lacks the feature, refuses it, and so stays behind in what follows.
"""

from typing import NamedTuple


class Deviation(NamedTuple):
    """Our status for some steps of a scenario; a repeated step's name ends in its count."""

    why: str
    scenario: str
    status: int
    steps: tuple[str, ...]


_CHECKSUM = "the service answers a wrong checksum with 400, the bench with 412"
_CRASH = "the bench crashes with 500"
_FAILED = "the bench calls a failed session complete and answers with an object never stored"
_CHUNKS = "the service refuses what the bench accepts: small, gapped and short chunks"
_RANGES = "a malformed or multiple range is ignored (RFC 9110); the bench answers nonsense"
_PAGING = "the bench ignores maxResults and pageToken"
_OLD = "without versioning an overwritten generation is gone; the bench keeps it"
_PARTIAL = "a ranged answer is 206; the bench sends 200 while it breaks the stream"
_NO_ETAGS = "conditions on etags are refused; the bench ignores them"
_NO_GZIP = "content encodings are refused"
_NO_VERSIONING = "object versioning is refused"
_NO_COMPOSE = "compose is refused"
_NO_PARTS = "rewriting in several calls or with other metadata, and moveTo, are refused"
_NO_XML = "the XML API is refused"

DEVIATIONS = (
    Deviation(
        "a list of buckets is refused", "bucket_create_get", 405, ("list buckets with prefix",)
    ),
    Deviation(
        "the service answers 409, the bench 400",
        "bucket_create_get",
        409,
        ("delete a bucket that is not empty",),
    ),
    Deviation(
        _CRASH,
        "insert_if_generation_match_current_stale",
        412,
        ("ifMetagenerationMatch on a missing name",),
    ),
    Deviation(
        _CHECKSUM,
        "insert_metadata_and_checksums",
        400,
        ("crc32c wrong", "md5Hash wrong", "crc32c wrong over an existing object"),
    ),
    Deviation(_CHECKSUM, "resumable_checksum", 400, ("PUT bad-meta", "PUT bad-hdr")),
    Deviation(_CHECKSUM, "fault_corrupted", 400, ("upload corrupted, crc32c given",)),
    Deviation(
        "a fake has its own way to corrupt",
        "fault_corrupted",
        200,
        ("download corrupted", "upload corrupted, no checksum given"),
    ),
    Deviation(_CRASH, "insert_malformed", 400, ("JSON part does not parse",)),
    Deviation(_CRASH, "resumable_odd_chunks", 400, ("malformed Content-Range",)),
    Deviation(
        _CHUNKS,
        "resumable_odd_chunks",
        400,
        (
            "first chunk of 100 bytes (not a multiple of 256 KiB)",
            "the rest",
            "chunk 2 skips 100 bytes",
            "body shorter than Content-Range says",
        ),
    ),
    Deviation(_CHUNKS, "resumable_odd_chunks", 404, ("the object (2)",)),
    Deviation(_CHUNKS, "resumable_cancel", 400, ("a chunk",)),
    Deviation(
        _FAILED,
        "resumable_checksum",
        400,
        ("query after the wrong checksum", "PUT again with the right checksum"),
    ),
    Deviation(
        _FAILED,
        "resumable_if_generation_match_0",
        412,
        ("query after the 412", "PUT again after the 412"),
    ),
    Deviation("X-GUploader-No-308 is ignored", "resumable_no_308", 308, ("chunk 1",)),
    Deviation(
        _RANGES,
        "get_media",
        200,
        ("Range: bytes=9-5", "Range: bytes=0-4,10-14", "Range: lines=0-4"),
    ),
    Deviation(_RANGES, "get_media", 206, ("Range: bytes=-2000",)),
    Deviation(
        _OLD,
        "get_media_preconditions_generations",
        404,
        ("generation=<old>", "generation=<old> after the delete"),
    ),
    Deviation(_OLD, "delete_object", 404, ("delete an old generation",)),
    Deviation(
        _NO_VERSIONING,
        "get_media_preconditions_generations",
        501,
        ("setup: create bucket with versioning",),
    ),
    Deviation(
        _NO_VERSIONING,
        "get_media_preconditions_generations",
        404,
        (
            "v1 (2)",
            "v2 (2)",
            "generation=<current> (2)",
            "generation=<old> (2)",
            "delete the live version (2)",
            "generation=<old> after the delete (2)",
        ),
    ),
    Deviation(
        _NO_VERSIONING,
        "list_versions",
        501,
        ("setup: create bucket", "versions=true", "versions=false"),
    ),
    Deviation(
        _NO_VERSIONING,
        "list_versions",
        404,
        ("o v1", "o v2", "gone", "delete gone", "no versions parameter"),
    ),
    Deviation(_NO_ETAGS, "etag_if_match", 501, ("If-Match wrong", "If-None-Match with the etag")),
    Deviation(
        "glob matching is refused",
        "list_prefix_delimiter",
        501,
        ("matchGlob=run/*/a", "matchGlob=**/a"),
    ),
    Deviation(_PAGING, "list_paging", 200, ("page 1", "a pageToken that the server never gave")),
    Deviation(
        _PAGING,
        "client_list_exists_delete",
        200,
        ("list_blobs(page_size=2)", "list_blobs(max_results=2)"),
    ),
    Deviation(_NO_GZIP, "insert_gzip_content_encoding", 501, ("insert",)),
    Deviation(
        _NO_GZIP,
        "insert_gzip_content_encoding",
        404,
        ("Accept-Encoding: gzip", "no Accept-Encoding", "Range without Accept-Encoding"),
    ),
    Deviation(
        _NO_COMPOSE,
        "compose",
        405,
        (
            "compose two, ifGenerationMatch=0 fresh",
            "ifGenerationMatch=0, exists",
            "source generation and precondition right",
            "source precondition wrong",
            "a source is missing",
            "33 sources",
            "no source",
            "deleteSourceObjects=true",
        ),
    ),
    Deviation(_NO_COMPOSE, "compose", 404, ("read it",)),
    Deviation(_NO_COMPOSE, "compose", 200, ("source is gone",)),
    Deviation(
        _NO_COMPOSE,
        "client_patch_compose_rewrite",
        405,
        ("compose([a, b], if_generation_match=0)",),
    ),
    Deviation(
        _NO_PARTS,
        "rewrite_copy_move",
        501,
        (
            "with new metadata in the body",
            "large rewrite, call 1",
            "large rewrite, call 2",
            "large rewrite, call 3",
            "unknown rewriteToken",
        ),
    ),
    Deviation(_NO_PARTS, "rewrite_copy_move", 405, ("moveTo",)),
    Deviation(_NO_PARTS, "rewrite_copy_move", 200, ("source after moveTo",)),
    Deviation(
        _NO_XML,
        "xml_and_batch",
        501,
        ("XML PUT, x-goog-if-generation-match: 0", "XML PUT again", "XML GET", "XML GET missing"),
    ),
    Deviation("there is no health check", "unknown_paths_methods", 501, ("root",)),
    Deviation(
        _PARTIAL,
        "fault_broken_stream_download",
        206,
        ("resume by Range, broken again after 256 KiB",),
    ),
    Deviation(_PARTIAL, "fault_503_after_256k", 206, ("download from 256 KiB, /retry-3",)),
)
