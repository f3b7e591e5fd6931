"""Count what the architecture promises: files on a run's way, code lines, circles, large pieces.

    python -m benchmarks.architecture [--tree DIR] [--run]

The tree is read as text, so that an older checkout can be counted with the same rules (`--tree`).
Code lines are lines that hold more than white space, a comment or a docstring. `--run` also traces
a small distributed run and counts the project's files in which anything is called between `main()`
and the last commit record; it runs the tree's own code, in a process of its own.
"""

import argparse
import ast
import io
import json
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("qwen_hooks", "inference", "extraction", "launch", "tensor_files", "sae")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
SKIPPED_TOKENS = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip

TRACED_RUN = """
import importlib, json, sys, threading
sys.path.insert(0, ".")
root, folder, packages = sys.argv[1], sys.argv[2], tuple(sys.argv[3].split(","))
make_demo = importlib.import_module("examples.make_demo")
from pathlib import Path
make_demo.make_checkpoint(Path(folder) / "checkpoint")
(Path(folder) / "tasks.json").write_text(json.dumps(make_demo.make_tasks()))
main = importlib.import_module("inference.distributed_inference_with_activations").main
try:  # what main imports runs as a module only, and would count as called
    importlib.import_module("inference.engine.distributed_run")
    importlib.import_module("transformers").AutoTokenizer
except ImportError:  # of version 0.1.0, which imports all of it before
    pass
prefixes = tuple(f"{root}/{package}/" for package in packages)
called, until_last_commit = {}, {}
def profile(frame, event, arg):
    if event == "call" and frame.f_code.co_filename.startswith(prefixes):
        called.setdefault(frame.f_code.co_filename[len(root) + 1:])
def audit(event, arguments):
    if event in ("os.link", "os.rename") and "_run/commits/0" in str(arguments[1]):
        until_last_commit.update(called)
sys.addaudithook(audit)
threading.setprofile(profile)
sys.setprofile(profile)
main(["--model_path", f"{folder}/checkpoint", "--tasks_file", f"{folder}/tasks.json",
      "--output_dir", f"{folder}/outputs", "--activations_dir", f"{folder}/activations",
      "--max_new_tokens", "4", "--save_every_n_samples", "8"])
sys.setprofile(None)
print(json.dumps(list(until_last_commit)))
"""


def source_files(tree: Path, package: str) -> list[Path]:
    """The Python files of a package, sorted."""
    return sorted((tree / package).rglob("*.py"))


def code_lines(source: str) -> int:
    """Lines that hold code: neither blank, comment nor docstring."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            documented |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED_TOKENS:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - documented)


def long_functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and lines, docstring excluded, of each function above the limit."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            lines = (node.end_lineno or node.lineno) - first.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield node.name, lines


def imports(tree: Path, file: Path, modules: dict[str, Path]) -> set[str]:
    """The project's modules that a file imports when it is imported itself."""
    found = set()
    nodes = list(ast.parse(file.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes += node.orelse
        elif isinstance(node, ast.If | ast.Try):
            nodes += node.body + node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found & set(modules)


def import_circles(tree: Path) -> list[tuple[str, ...]]:
    """Groups of modules that import one another, directly or by way of others."""
    modules = {}
    for package in PACKAGES:
        for file in source_files(tree, package):
            name = ".".join(file.relative_to(tree).with_suffix("").parts)
            modules[name.removesuffix(".__init__")] = file
    edges = {name: imports(tree, file, modules) - {name} for name, file in modules.items()}

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for module in edges[waiting.pop()] - seen:
                seen.add(module)
                waiting.append(module)
        return seen

    reach = {name: reached(name) for name in modules}
    circles = {
        tuple(sorted({name} | {other for other in reach[name] if name in reach[other]}))
        for name in modules
        if name in reach[name]
    }
    return sorted(circles)


def traced_files(tree: Path) -> list[str]:
    """Files in which anything is called from `main()` to the last commit of a small run."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", TRACED_RUN, str(tree), folder, ",".join(PACKAGES)],
            cwd=tree, check=True, capture_output=True, text=True,
        )  # fmt: skip
    return sorted(json.loads(result.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=Path(), help="checkout to count (default: .)")
    parser.add_argument("--run", action="store_true", help="also trace a small distributed run")
    options = parser.parse_args(arguments)
    tree = options.tree.resolve()
    print(f"{'package':12}{'files':>8}{'lines':>8}{'code lines':>12}")
    totals = [0, 0, 0]
    large_files, large_functions = [], []
    for package in PACKAGES:
        files = source_files(tree, package)
        sources = {file: file.read_text(encoding="utf-8") for file in files}
        counts = [len(files), *(sum(map(count, sources.values())) for count in (
            lambda source: len(source.splitlines()), code_lines))]  # fmt: skip
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        print(f"{package:12}{counts[0]:8}{counts[1]:8}{counts[2]:12}")
        for file, source in sources.items():
            name = str(file.relative_to(tree))
            if len(source.splitlines()) > MAX_FILE_LINES:
                large_files.append(f"{name} {len(source.splitlines())}")
            large_functions += [f"{name} {f} {lines}" for f, lines in long_functions(source)]
    print(f"{'all':12}{totals[0]:8}{totals[1]:8}{totals[2]:12}\n")
    print(f"files over {MAX_FILE_LINES} lines: {', '.join(large_files) or 'none'}")
    print(f"functions over {MAX_FUNCTION_LINES} lines: {', '.join(large_functions) or 'none'}")
    circles = import_circles(tree)
    print(f"import circles: {'; '.join(' '.join(circle) for circle in circles) or 'none'}")
    if options.run:
        files = traced_files(tree)
        print(f"files called from main() to the last commit: {len(files)}")
        print("  " + "\n  ".join(files))


if __name__ == "__main__":
    main()
