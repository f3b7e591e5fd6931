"""Where the tests keep compiled programs, so that the next run need not compile them.

Workers and the commands that tests start compile the same programs. Each is compiled once and kept
in the user's cache folder, of which the files that were not used for longest are removed when all
together exceed `LIMIT`. JAX_COMPILATION_CACHE_DIR names another folder, from which nothing is
removed.
"""

import contextlib
import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path

LIMIT = 2 * 1024**3
"""Bytes kept, over all versions of JAX."""


def cache_settings(environment: Mapping[str, str], limit: int = LIMIT) -> dict[str, str]:
    """Return the environment with JAX's compilation cache turned on, and make room in its folder.

    Args:
        environment: of this process; what it sets already stays.
        limit: bytes to keep.
    """
    settings = {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if "JAX_COMPILATION_CACHE_DIR" not in environment:  # a worker has it from who started it
        cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = cache / "qwen-activation-extraction" / "compiled-for-tests"
        make_room(root, limit)
        version = importlib.metadata.version("jax")
        settings["JAX_COMPILATION_CACHE_DIR"] = str(root / f"jax-{version}-{processor()}")
    return settings | dict(environment)


def processor() -> str:
    """Return a name of this processor's instructions: programs for others may not run here."""
    facts = sys.platform
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        facts = next((line for line in lines if line.startswith(("flags", "Features"))), facts)
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def make_room(root: Path, limit: int) -> None:
    """Remove the files that were not used for longest, until the rest is within `limit` bytes."""
    files = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run makes room too
            status = path.stat()
            if path.is_file():
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
