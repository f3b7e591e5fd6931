"""What may be on a disk when the power goes: every state that the operating system permits.

As in ALICE (Pillai et al., OSDI 2014): what is written into a file lasts when the file was synced,
what is done to a folder's entries lasts when the folder was synced, and of all else any subset may
have reached the disk, in any order; of a write also a part. A `Disk` is told the operations of one
or more processes and makes the states of each moment.
"""

import dataclasses
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.faulty_os import Operation

Home = tuple[str, int]
"""What has to be synced: ("file" or "folder", its number)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """Something that a crash may undo.

    Attributes:
        home: of what it changes.
        kind: "enter" (name and number into a folder), "leave" (a name), "move" (a name to
            another, with the number), "grow" (a file to a size), "write" (bytes at a place),
            "empty" (a file).
        arguments: see `kind`.
    """

    home: Home
    kind: str
    arguments: tuple

    def parts(self) -> Sequence[float]:
        """How much of it may be on the disk."""
        return (0.0, 0.5, 1.0) if self.kind == "write" else (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Sync:
    """A file or a folder is on the disk as it stands."""

    home: Home


Said = tuple
"""What the run told at that moment."""

Tree = dict[str, bytes]
"""Files by their path; folders by their path with a slash at its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crash:
    """One state of the disk.

    Attributes:
        moment: how many operations came before.
        tree: what is there.
        said: what the run had told.
    """

    moment: int
    tree: Tree
    said: tuple[Said, ...]


class Disk:
    """The files below a folder, now and after a crash.

    Args:
        root: the folder; what it holds is on the disk.
    """

    def __init__(self, root: Path):
        self._root = root
        self._numbers = itertools.count(1)
        self._entries: dict[str, Home] = {"": ("folder", 0)}
        self._contents: dict[int, bytes] = {}
        self._log: list[Change | Sync | Said] = []
        for path in sorted(root.rglob("*")):
            self._make(self._name(path), "folder" if path.is_dir() else "file")
            if path.is_file():
                self._write_missing(self._name(path), path.read_bytes())
        for home in list(self._entries.values()):
            self._log.append(Sync(home))
        self.forget()

    def forget(self) -> None:
        """States of moments before this one are of no interest."""
        self._since = len(self._log)

    def hear(self, event: tuple) -> None:
        """Takes in what a process told: ("operation", Operation, content), or anything else."""
        if event[0] == "operation":
            self._carry_out(*event[1:])
        else:
            self._log.append(event)

    def _carry_out(self, operation: Operation, content: bytes | None) -> None:
        """An operation that succeeded, and what its file held then."""
        name, path = operation.name, self._name(operation.path)
        if path.startswith(".."):
            return  # a folder above
        if content is not None:  # a stream may have written past the functions that are watched
            self._write_missing(path, content)
        if name == "open":
            if operation.arguments[1] & os.O_CREAT and path not in self._entries:
                self._make(path, "file")
        elif name == "mkdir":
            self._make(path, "folder")
        elif name == "posix_fallocate":
            self._change(self._entries[path], "grow", operation.arguments[2])
            number = self._entries[path][1]
            self._contents[number] = self._contents[number].ljust(operation.arguments[2], b"\0")
        elif name == "write":
            # content holds it already
            pass
        elif name == "fsync":
            self._log.append(Sync(self._entries[path]))
        elif name in {"link", "replace"}:
            assert operation.target is not None
            target = self._name(operation.target)
            home = self._entries[path]
            self._entries[target] = home
            if name == "link":
                self._change(self._folder(target), "enter", Path(target).name, *home)
            else:
                assert Path(path).parent == Path(target).parent
                del self._entries[path]
                names = Path(path).name, Path(target).name
                self._change(self._folder(target), "move", *names, *home)
        elif name in {"unlink", "rmdir"}:
            del self._entries[path]
            self._change(self._folder(path), "leave", Path(path).name)

    def _name(self, path: str | Path) -> str:
        name = os.path.relpath(path, self._root)
        return "" if name == "." else name

    def _folder(self, name: str) -> Home:
        return self._entries[str(Path(name).parent).removeprefix(".")]

    def _make(self, name: str, kind: str) -> None:
        home = kind, next(self._numbers)
        self._entries[name] = home
        if kind == "file":
            self._contents[home[1]] = b""
        self._change(self._folder(name), "enter", Path(name).name, *home)

    def _change(self, home: Home, kind: str, *arguments) -> None:
        self._log.append(Change(home=home, kind=kind, arguments=arguments))

    def _write_missing(self, name: str, content: bytes) -> None:
        """What has been written since the file was last looked at."""
        home = self._entries[name]
        known = self._contents[home[1]]
        if known == content:
            return
        if len(content) < len(known):
            self._change(home, "empty")
            known = b""
        start = next((n for n, byte in enumerate(known) if content[n] != byte), len(known))
        self._change(home, "write", start, content[start:])
        self._contents[home[1]] = content

    def crashes(self, most: int, generator: random.Random) -> Iterator[Crash]:
        """What a crash may leave at each moment.

        Args:
            most: states of one moment; where there may be more, they are drawn, the extremes
                and those without one change among them.
            generator: draws.
        """
        lasting: list[tuple[Change, float]] = []
        pending: list[int] = []
        said: list[Said] = []
        for moment, entry in enumerate(self._log):
            lasting.append((entry, 1.0) if isinstance(entry, Change) else (_NOTHING, 0.0))
            if isinstance(entry, Sync):
                # Permits nothing that the moment before did not.
                pending = [n for n in pending if lasting[n][0].home != entry.home]
                continue
            if isinstance(entry, Change):
                pending.append(moment)
            else:
                said.append(entry)
            if moment < self._since:
                continue
            for parts in _choices([lasting[n][0].parts() for n in pending], most, generator):
                happened = list(lasting)
                for n, part in zip(pending, parts, strict=True):
                    happened[n] = happened[n][0], part
                yield Crash(moment=moment, tree=_tree(happened), said=tuple(said))


_NOTHING = Change(home=("", 0), kind="nothing", arguments=())


def _choices(
    parts: Sequence[Sequence[float]], most: int, generator: random.Random
) -> Iterator[Sequence[float]]:
    count = 1
    for options in parts:
        count *= len(options)
    if count <= most:
        yield from itertools.product(*parts)
        return
    size = len(parts)
    yield [0.0] * size
    yield [1.0] * size
    for n in generator.sample(range(size), min(size, most // 3)):
        yield [float(n != m) for m in range(size)]
        yield [float(n == m) for m in range(size)]
    for _ in range(most // 3):
        yield [generator.choice(options) for options in parts]


def _tree(happened: Sequence[tuple[Change, float]]) -> Tree:
    folders: dict[int, dict[str, Home]] = {0: {}}
    files: dict[int, bytearray] = {}
    for change, part in happened:
        number, arguments = change.home[1], change.arguments
        if part == 0.0:
            continue
        if change.home[0] == "folder":
            entries = folders.setdefault(number, {})
            if change.kind == "enter":
                entries[arguments[0]] = arguments[1:]
            elif change.kind == "leave":
                entries.pop(arguments[0], None)
            else:
                entries.pop(arguments[0], None)
                entries[arguments[1]] = arguments[2:]
            continue
        data = files.setdefault(number, bytearray())
        if change.kind == "grow":
            data.extend(bytes(max(0, arguments[0] - len(data))))
        elif change.kind == "write":
            start, content = arguments
            content = content[: round(len(content) * part)]
            data.extend(bytes(max(0, start - len(data))))
            data[start : start + len(content)] = content
        else:
            data.clear()
    tree: Tree = {}
    _collect("", 0, folders, files, tree)
    return tree


def _collect(
    prefix: str,
    number: int,
    folders: dict[int, dict[str, Home]],
    files: dict[int, bytearray],
    tree: Tree,
) -> None:
    for name, (kind, child) in folders.get(number, {}).items():
        if kind == "file":
            tree[prefix + name] = bytes(files.get(child, b""))
        else:
            tree[f"{prefix}{name}/"] = b""
            _collect(f"{prefix}{name}/", child, folders, files, tree)


def lay_out(tree: Tree, folder: Path) -> None:
    """Makes the files of a tree."""
    for name, data in tree.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
