"""Every command that the pages, the Makefile and the helps name."""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("python", "make", "gcloud", "kubectl", "sbatch", "pip", "git", "source", "qwen-")
"""First words of commands; a code span that begins with another is none."""

MODULES = ("benchmarks", "examples", "extraction", "inference", "launch", "sae", "tests/tpu")


@dataclasses.dataclass(frozen=True)
class Named:
    """A command, and the file that names it."""

    place: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def _is_command(line: str) -> bool:
    words = line.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # the environment
        words = words[1:]
    if not words or not words[0].startswith(PROGRAMS):
        return False
    if words[0] == "python":  # `python -c` and the word alone are no commands of ours
        return len(words) > 1 and (words[1] == "-m" or words[1].endswith(".py"))
    return len(words) > 1


def _words(line: str) -> tuple[str, ...]:
    """Without the comment, and without the brackets of what may be left out."""
    line = re.sub(r"\[any [^]]*\]|\[flags [^]]*\]", "", line)
    if line.startswith("python"):  # of alternatives the first
        line = re.sub(r"\s*\|\s*--[^]]*(?=\])", "", line)
        line = line.replace("[", " ").replace("]", " ")
    return tuple(shlex.split(line, comments=True))


def _joined(text: str) -> list[str]:
    """Lines, those that are continued as one."""
    return re.sub(r"\\+\n\s*", " ", text).splitlines()


def of_page(path: Path) -> list[Named]:
    """Commands of a Markdown page: in indented and fenced blocks, and in code spans."""
    text = path.read_text(encoding="utf-8")
    lines, fence = [], None
    for line in _joined(text):
        if line.startswith("```"):
            fence = None if fence is not None else line[3:]
        elif fence is not None:
            lines += [line.strip()] if fence in ("", "bash", "sh", "console", "output") else []
        elif line.startswith("    "):
            lines.append(line.strip())
        else:
            lines += re.findall(r"`([^`]+)`", line)
    name = str(path.relative_to(ROOT))
    return [Named(name, _words(line)) for line in lines if _is_command(line)]


def of_makefile() -> list[Named]:
    """What the comments say, and one command for each target."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    said = [re.split(r"\s{2,}", line[2:])[0] for line in text.splitlines() if line[:3] == "# m"]
    commands = [*said, *(f"make {target}" for target in phony.split())]
    return [Named("Makefile", _words(command)) for command in commands]


def of_helps() -> list[Named]:
    """What modules that are commands say at their heads, which is what `--help` prints."""
    found = []
    for folder in MODULES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if '__name__ == "__main__"' in text and text.startswith('"""'):
                head = _joined(text[3 : text.index('"""', 3)])
                # Indented ones go on where the next line is indented further.
                whole = re.sub(r"\n {8,}(?=[\[<-])", " ", "\n".join(head)).splitlines()
                lines = [re.split(r"\s{2,}(?=[a-z])", line.strip())[0] for line in whole]
                lines += re.findall(r"`([^`]+)`", " ".join(head))
                name = str(path.relative_to(ROOT))
                found += [Named(name, _words(line)) for line in lines if _is_command(line)]
    return found


def all_named() -> list[Named]:
    """Every command, each place once."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    found = [named for page in pages for named in of_page(page)]
    return list(dict.fromkeys([*found, *of_makefile(), *of_helps()]))
