"""The program as one archive, so that every worker runs exactly this version of it.

    extraction/ inference/ launch/ qwen_hooks/ sae/ tensor_files/   as they are on this machine
    requirements.txt   their requirements
    constraints.txt    the versions that are installed on this machine

The same files always give the same bytes, so the archive is named by its sha256.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import io
import re
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement

from inference.errors import InputError

PROJECT = "qwen-activation-extraction"
PACKAGES = ("extraction", "inference", "launch", "qwen_hooks", "sae", "tensor_files")
ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".py", ".typed", ".json", ".sh", ".jinja")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive of the program.

    Attributes:
        data: bytes of a tar.gz file.
        sha256: sha256 of the data.
        python: version of Python to run it with, such as 3.11.
    """

    data: bytes
    sha256: str
    python: str

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"source-{self.sha256[:16]}.tar.gz"


def make_archive(extra: str = "tpu") -> Archive:
    """Return an archive of the packages that run here.

    Args:
        extra: extra of the project that the workers need, `tpu`.

    Raises:
        InputError: the requirements cannot be found.
    """
    requirements = list(required(extra))
    files = dict(_sources())
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements).encode()
    pins = "".join(f"{name}=={version}\n" for name, version in installed(requirements).items())
    files["constraints.txt"] = pins.encode()
    data = pack(files)
    return Archive(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
    )


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a tar.gz without times, owners or anything else that differs between machines."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(files[name]))
    return gzip.compress(tar.getvalue(), mtime=0)


def required(extra: str) -> Iterator[str]:
    """Yield the requirements of the project: those of this checkout, else of the installed package.

    Raises:
        InputError: there is neither a checkout nor an installed package.
    """
    checkout = ROOT / "pyproject.toml"
    if checkout.exists():
        project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]
        yield from sorted(project["dependencies"])
        yield from sorted(project["optional-dependencies"].get(extra, []))
        return
    try:
        lines = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"{ROOT} holds no pyproject.toml and {PROJECT} is not installed, so the workers'"
            f" requirements are not known; run `pip install {PROJECT}`, or use a checkout"
        ) from None
    for line in sorted(lines):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            yield str(requirement)


def installed(requirements: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of the requirements, and of all that they require."""
    found: dict[str, str] = {}
    waiting = [Requirement(line) for line in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for extra in ["", *requirement.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                distribution = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # for another platform, such as libtpu on a laptop
            found[name] = distribution.version
            for line in distribution.requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return dict(sorted(found.items()))


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in SUFFIXES and "__pycache__" not in path.parts and path.is_file():
                yield path.relative_to(ROOT).as_posix(), path.read_bytes()
