"""What imports what, and how things are named: the design, checked on the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import imatrix_lab

PACKAGE = Path(imatrix_lab.__file__).parent
ORDER = (
    "errors", "types", "core", "stats", "report", "llamacpp", "models", "records", "corpus",
    "imatrix", "score", "quantize", "compare", "tasks", "pipeline", "publish", "study", "cli",
)  # fmt: skip
"""A folder imports itself and what stands before it."""
TERMINAL = {"click", "rich"}
HEAVY = {
    "numpy", "gguf", "huggingface_hub", "llama_cpp", "psutil", "filelock", "platformdirs",
    "torch", "transformers", "requests", "httpx", "httpx2", "pyarrow", "scipy", "statsmodels",
    "datasets", "sacrebleu", "py3langid", "regex", "rensa", "multiprocessing",
    "matplotlib", "jinja2", "markupsafe",
}  # fmt: skip
STARTERS = re.compile(
    r"(system|popen|fork|forkpty|exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?|startfile)"
)
EXITS = {"print", "sys.exit", "exit", "quit", "os._exit", "input"}
HOME = re.compile(r"(^|[\s\"'=:(])(/home/|/root\b|/Users/|/tmp/|[A-Z]:\\)")
EMPTY_NAMES = ({"found"}, {"said", "asked", "wanted", "there", "made", "those"})
"""Names that say nothing of what they hold."""
BUDGET = (5, 5)
"""At most so many of each group in 1,000 lines."""


def modules() -> dict[str, ast.Module]:
    """Every module of the package by dotted name, without the package's own."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] == "_data":
            continue
        name = ".".join(p for p in inside.with_suffix("").parts if p != "__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


MODULES = modules()


def folder(name: str) -> str:
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
    return {inside for name in imports(tree) if (inside := own_module(name))}


def own_module(name: str) -> str:
    """The module of the package that a dotted name is in, or ""."""
    if not name.startswith("imatrix_lab."):
        return ""
    inside = name.removeprefix("imatrix_lab.")
    while inside and inside not in MODULES:
        inside = inside.rpartition(".")[0]
    return inside


def offenders(check: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The modules with something to object to, for the message of an assertion."""
    return {name: objection for name, objection in check if objection}


def test_a_folder_imports_itself_and_what_stands_before_it() -> None:
    assert {folder(name) for name in MODULES if name} == set(ORDER)
    assert "corpus.build" in own_imports(MODULES["pipeline.tune"])
    upward = offenders(
        (name, {i for i in own_imports(tree) if ORDER.index(folder(i)) > ORDER.index(folder(name))})
        for name, tree in MODULES.items()
        if name
    )
    assert upward == {}


def test_modules_do_not_import_each_other_in_a_ring() -> None:
    graph = {name: own_imports(tree) - {name} for name, tree in MODULES.items()}
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert sorted(graph) == []


def starts_programs(tree: ast.AST) -> Iterator[str]:
    """What a module starts other programs with."""
    for name in imports(tree):
        first, _, rest = name.partition(".")
        if (
            first in {"subprocess", "multiprocessing", "pty"}
            or re.match(r"concurrent\.futures\.[Pp]rocess", name)
            or (first == "os" and STARTERS.fullmatch(rest))
            or (first == "asyncio" and "subprocess" in rest)
        ):
            yield name
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name("os"), attr) if STARTERS.fullmatch(attr):
                yield f"os.{attr}"
            case ast.keyword("shell", value) if ast.unparse(value) != "False":
                yield "shell="


def test_only_core_process_starts_programs() -> None:
    started = offenders((name, [*starts_programs(tree)]) for name, tree in MODULES.items())
    in_core = {folder(str(i)) for i in started.pop("core.process")}
    assert in_core == {"subprocess", "multiprocessing", "concurrent", "os"}
    assert started == {}


def test_only_the_command_line_prints_and_exits() -> None:
    below = {name: tree for name, tree in MODULES.items() if folder(name) != "cli"}
    drawing = offenders((n, {folder(i) for i in imports(t)} & TERMINAL) for n, t in below.items())
    assert drawing == {}
    printing = offenders(
        (n, EXITS & {ast.unparse(c.func) for c in ast.walk(t) if isinstance(c, ast.Call)})
        for n, t in below.items()
    )
    assert printing == {}


def test_no_path_of_anyones_machine() -> None:
    paths = offenders(
        (name, [text for text in strings(tree) if HOME.search(text)])
        for name, tree in MODULES.items()
    )
    assert paths == {}


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_command_line_starts_light() -> None:
    code = "import sys, imatrix_lab.cli.main; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert loaded & HEAVY == set()


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name that is given or used, without leading underscores."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id.lstrip("_")
        elif isinstance(node, ast.arg):
            yield node.arg.lstrip("_")
        elif isinstance(node, ast.Attribute):
            yield node.attr.lstrip("_")
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name.lstrip("_")


def test_names_say_what_they_hold() -> None:
    n_lines = sum(len(path.read_bytes().splitlines()) for path in PACKAGE.rglob("*.py"))
    for words, limit in zip(EMPTY_NAMES, BUDGET, strict=True):
        counts = {
            name: sum(word in words for word in identifiers(tree)) for name, tree in MODULES.items()
        }
        worst = sorted(offenders(counts.items()), key=lambda name: -counts[name])[:10]
        share = 1000 * sum(counts.values()) / n_lines
        assert share < limit, [f"{name}: {counts[name]}" for name in worst]


def test_modules_go_by_their_own_names() -> None:
    assert offenders((name, [*aliases(tree)]) for name, tree in MODULES.items()) == {}


def aliases(tree: ast.AST) -> Iterator[str]:
    """The package's modules that are imported under another name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                name = (prefix + alias.name).removeprefix("imatrix_lab.")
                if alias.asname and name in MODULES:
                    yield f"{name} as {alias.asname}"


def test_the_checks_see_what_they_look_for() -> None:
    tree = ast.parse(
        "from imatrix_lab.corpus.build import build\nfrom imatrix_lab.core import process\n"
        "from imatrix_lab.core import files as f\nimport os\nos.system(found)\n"
        "import subprocess\ncall(shell=True)"
    )
    assert own_imports(tree) == {"corpus.build", "core.process", "core.files"}
    assert [*aliases(tree)] == ["core.files as f"]
    assert {*starts_programs(tree)} == {"os.system", "subprocess", "shell="}
    assert "found" in identifiers(tree)
