"""What imports what: the design, checked on the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import imatrix_lab

PACKAGE = Path(imatrix_lab.__file__).parent
ORDER = [
    "errors",
    "types",
    "core",
    "stats",
    "report",
    "llamacpp",
    "models",
    "records",
    "corpus",
    "imatrix",
    "quantize",
    "score",
    "compare",
    "tasks",
    "pipeline",
    "study",
    "cli",
]
TERMINAL = {"click", "rich"}
HEAVY = {
    "numpy", "gguf", "huggingface_hub", "llama_cpp", "psutil", "filelock", "platformdirs",
    "torch", "transformers", "requests", "httpx", "httpx2", "pyarrow", "scipy", "statsmodels",
    "arch", "datasets", "sacrebleu", "py3langid", "regex", "rensa", "multiprocessing",
    "matplotlib", "jinja2", "markupsafe",
}  # fmt: skip
STARTERS = re.compile(
    r"(system|popen|fork|forkpty|exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?|startfile)"
)


def modules() -> dict[str, ast.Module]:
    """Every module of the package by dotted name, without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] == "_data":
            continue
        parts = inside.with_suffix("").parts
        name = ".".join(p for p in parts if p != "__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()
NAMES = sorted(MODULES)


def part(name: str) -> str:
    """The first word of a dotted name."""
    return name.split(".", maxsplit=1)[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported: ``a.b`` for ``from a import b``, whatever b is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """The package's modules that are imported, without the package's name."""
    found = set()
    for name in imports(tree):
        if not name.startswith("imatrix_lab."):
            continue
        inside = name.removeprefix("imatrix_lab.")
        while inside and inside not in MODULES:
            inside = inside.rpartition(".")[0]
        if inside:
            found.add(inside)
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_a_folder_imports_itself_and_what_stands_before_it(name: str) -> None:
    place = ORDER.index(part(name))
    assert {w for w in own_imports(MODULES[name]) if ORDER.index(part(w)) > place} == set()


def test_the_folders_are_those_of_the_package() -> None:
    assert {part(name) for name in NAMES if name} == set(ORDER)
    assert "corpus.build" in own_imports(MODULES["pipeline.tune"])


def test_modules_do_not_import_each_other_in_a_ring() -> None:
    graph = {name: own_imports(tree) - {name} for name, tree in MODULES.items()}
    while leaves := {name for name, wanted in graph.items() if not wanted & graph.keys()}:
        graph = {name: wanted for name, wanted in graph.items() if name not in leaves}
    assert sorted(graph) == []


@pytest.mark.parametrize("name", NAMES)
def test_only_core_process_starts_programs(name: str) -> None:
    tree = MODULES[name]
    first_words = {part(i) for i in imports(tree)}
    assert "pty" not in first_words
    assert ("subprocess" in first_words) == (name == "core.process")
    pools = {i for i in imports(tree) if re.match(r"concurrent\.futures\.[Pp]rocess", i)}
    assert ("multiprocessing" in first_words or bool(pools)) == (name == "core.process")
    calls = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and STARTERS.fullmatch(node.attr)
    }
    calls |= {i for i in imports(tree) if i.startswith("os.") and STARTERS.fullmatch(i[3:])}
    calls |= {i for i in imports(tree) if i.startswith("asyncio.") and "subprocess" in i}
    assert calls == set()
    shells = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "shell"
        and ast.unparse(node.value) != "False"
    ]
    assert shells == []


@pytest.mark.parametrize("name", NAMES)
def test_only_the_command_line_knows_the_terminal(name: str) -> None:
    found = {part(i) for i in imports(MODULES[name])} & TERMINAL
    assert not found or part(name) == "cli"


def test_the_command_line_starts_light() -> None:
    code = "import sys, imatrix_lab.cli.main; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_anyones_machine(name: str) -> None:
    home = re.compile(r"(^|[\s\"'=:(])(/home/|/root\b|/Users/|/tmp/|[A-Z]:\\)")
    found = [
        node.value
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and home.search(node.value)
    ]
    assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_no_print_and_no_exit_below_the_command_line(name: str) -> None:
    if part(name) == "cli":
        return
    calls = {ast.unparse(n.func) for n in ast.walk(MODULES[name]) if isinstance(n, ast.Call)}
    assert calls & {"print", "sys.exit", "exit", "quit", "os._exit", "input"} == set()


def test_the_checks_see_what_they_look_for() -> None:
    tree = ast.parse(
        "from imatrix_lab.corpus.build import build\nfrom imatrix_lab.core import process"
    )
    assert own_imports(tree) == {"corpus.build", "core.process"}
