"""Every remedy that an error offers is a command that exists, or plain words.

A new ``fix=`` that no rule here knows fails: add a rule that tries it, or word it otherwise.
"""

import gzip
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import huggingface_hub.constants
import pytest

from imatrix_lab.cli.main import cli, run
from imatrix_lab.core import files
from imatrix_lab.errors import ImatrixLabError
from tests.remedies import FILLED, PACKAGE, Remedy, all_remedies

ROOT = Path(__file__).parent.parent
REMEDIES = [
    remedy
    for remedy in all_remedies()
    if not remedy.where.startswith("errors.py") and re.search(r"\w", remedy.text)
]
CLAUSES = re.compile(r"; (?:or )?|, (?:or |and |then )?|: | or | then | with | {2,}|\n|[()`]")
"""What stands between the parts of a remedy."""
METAVARS = ("MODEL", "FILE", "LANGUAGE", "CODE", "TASK", "A", "B", "RUN_A", "RUN_B")
PLAIN = re.compile(
    r"(a|add|another|build|check|choose|close|compare|complete|compute|convert|correct|delete|download|fetch"
    r"|fewer|finish|give|if|install|leave|let|look|mend|more|name|one|open|pin|point|put|read|remove|rename|run|save|score"
    r"|set|the|types|use|write)\b"
)
"""How remedies in plain words begin."""
SETTINGS = re.compile(r"(labels|samples|schema|gold_is|keep|languages|limits\.|docs/|nb|its |http)")
"""How remedies begin that are settings in a file, or a value of an option."""
VALUES = {"calibxlangxtype", "Debian/Ubuntu", "all parts"}
PACKAGES = {"g++", "gcc-c++", "nvidia-cuda-toolkit", "glslc", "libvulkan-dev", "spirv-headers"}
PACKAGES |= {"libopenblas-dev", "pkg-config"}
VARIABLE = re.compile(r"(?<![-\w{])((?:HF|IMATRIX|LLAMA|SSL|CMAKE|GGML|OMP)_[A-Z0-9_]+|BACKEND)\b")


def clauses(remedy: Remedy) -> Iterator[str]:
    """Yield the parts of a remedy: commands, and words between them."""
    for part in CLAUSES.split(remedy.text):
        if words := part.strip(" ,.;:—→"):
            yield words


# -- what a command line must be


def imatrix_lab(words: list[str]) -> None:
    """The command's own parser takes it; nothing is run."""
    command: click.Command = cli
    context = click.Context(command, info_name="imatrix-lab")
    folder_or_file = "FOLDER" if words[:1] == ["study"] else "FILE"
    filled = "cpu" if words[-2:-1] == ["--backend"] else folder_or_file
    rest = [word.replace(FILLED, filled) for word in words]
    while isinstance(command, click.Group):
        assert rest, f"no command: imatrix-lab {shlex.join(words)}"
        found = command.get_command(context, rest.pop(0))
        assert found is not None, f"no such command: imatrix-lab {shlex.join(words)}"
        command = found
    command.make_context(command.name, rest, parent=context)


def make(words: list[str]) -> None:
    """The target is in the Makefile, and so are the variables."""
    source = (ROOT / "Makefile").read_text(encoding="utf-8")
    settings = re.search(r"^SETTINGS := (.+)$", source, re.MULTILINE)
    assert settings
    for word in words:
        name, is_setting, _ = word.partition("=")
        if is_setting:
            assert name in settings[1].split()
        else:
            assert re.search(rf"^{re.escape(name)}:", source, re.MULTILINE), word


def pip(words: list[str]) -> None:
    """What is installed is this package with an extra that it has, or something it depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = {*project["dependencies"], *(d for group in extras.values() for d in group)}
    names = {re.split(r"[\[<>=~! ]", entry)[0].lower() for entry in known} | {"pysocks"}
    assert words[0] in {"install", "config"}
    for word in words[1:] if words[0] == "install" else ():
        if word.startswith("-"):
            assert word in {"--force-reinstall", "--no-deps", "--no-cache-dir"}
        elif extra := re.fullmatch(r"imatrix_lab\[(.+)\]", word):
            assert extra[1] in {*extras, FILLED}
        else:
            name = re.split(r"[\[=]", word)[0].lower()
            assert name in names or FILLED in name, name


def environment(words: list[str]) -> None:
    """A command without some variables: here one of pip."""
    pip(words[words.index("pip") + 1 :])


def sudo(words: list[str]) -> None:
    """A system's own package manager, with packages that it has."""
    manager, verb, *packages = words
    assert (manager, verb) in {("apt", "install"), ("dnf", "install"), ("apt-get", "update")}
    assert set(packages) <= PACKAGES


def hub(words: list[str]) -> None:
    """The Hub's own program knows the command."""
    program = Path(sys.executable).with_name("hf")
    done = subprocess.run([program, *words, "--help"], capture_output=True, check=False)
    assert done.returncode == 0, words


def installed_script(name: str) -> Callable[[list[str]], None]:
    """A program that comes with something this package depends on."""

    def check(words: list[str]) -> None:
        scripts = importlib.metadata.entry_points(group="console_scripts")
        assert name in {script.name for script in scripts}

    return check


def own_modules(words: list[str]) -> None:
    """A module of Python's own library, of any version."""
    assert words[0] == "-m" and words[1] in sys.stdlib_module_names | {"json.tool"}


def standard(*options: str) -> Callable[[list[str]], None]:
    """A standard program, with options that it has everywhere."""

    def check(words: list[str]) -> None:
        given = {word for word in words if word.startswith("-") and word != "-"}
        assert given <= set(options), words
        assert [word for word in words if not word.startswith("-")], words

    return check


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "imatrix-lab": imatrix_lab,
    "make": make,
    "pip": pip,
    "sudo": sudo,
    "hf": hub,
    "python3": own_modules,
    "gguf-convert-endian": installed_script("gguf-convert-endian"),
    "gguf-new-metadata": installed_script("gguf-new-metadata"),
    "cat": standard(),
    "chmod": standard("-R", "o-w"),
    "df": standard("-h"),
    "env": environment,
    "iconv": standard("-f", "-t"),
    "jq": standard("-c"),
    "llama-server": standard("-m", "--chat-template-file"),
    "ls": standard("-l"),
    "mkdir": standard("-p"),
    "rm": standard("-r", "-rf"),
    "sed": standard("-n"),
    "unset": standard(),
    "xcode-select": lambda words: standard("--install")([*words, "x"]),
}


def options_of(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the options of a command and of those in it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if inner := command.get_command(context, name):
                yield from options_of(inner, context)


OPTIONS = {*options_of(cli, click.Context(cli)), "--outtype", "--remove-metadata"}


def known_variables() -> set[str]:
    """Return the variables that the package, its libraries and the Makefile read."""
    sources = "\n".join(p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    read = re.findall(r"[\"']([A-Z][A-Z0-9_]+)[\"']", sources)
    return {*read, *re.findall(r"\b[A-Z_]+\b", makefile), *vars(huggingface_hub.constants)}


VARIABLES = known_variables()


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda r: r.where)
def test_a_remedy_is_something_that_can_be_done(remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    for name in METAVARS:
        (tmp_path / name).touch()
    try:
        check(remedy)
    except (AssertionError, click.ClickException, ValueError) as error:
        pytest.fail(f"{remedy.where}: {remedy.text!r}: {error or type(error).__name__}")


def check(remedy: Remedy) -> None:
    """Fail unless a remedy begins with a command or plain words, and its commands exist."""
    assert "…" not in remedy.text and "..." not in remedy.text, "a placeholder without a name"
    parts = list(clauses(remedy))
    for part in parts:
        check_part(part)
    first = parts[0].split()[0] if parts else FILLED
    is_known = first in COMMANDS or first.strip(",") in VALUES or first.startswith("--")
    is_known |= FILLED in first or first in METAVARS or bool(VARIABLE.match(first))
    is_known |= bool(PLAIN.match(parts[0]) or SETTINGS.match(parts[0])) if parts else True
    assert is_known, "no rule knows how this begins; see this test's module"


def check_part(part: str) -> None:
    """Fail if a part of a remedy is a command, an option or a variable that does not exist."""
    for name in VARIABLE.findall(part):
        assert name in VARIABLES, f"no variable {name}"
    part = re.sub(r"^[A-Z_]+='[^']*' ", "", part)
    first = part.split()[0]
    if first in COMMANDS:
        COMMANDS[first](shlex.split(part.split(" > ")[0])[1:])
        return
    for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", part):
        assert option in OPTIONS, f"no option {option}"


def test_the_collector_sees_what_is_written():
    texts = {remedy.text for remedy in REMEDIES}
    assert len(texts) > 150
    assert any("imatrix check" in t and "--corpus LANGUAGE" in t for t in texts)  # fix += …
    assert "imatrix-lab doctor" in texts


@pytest.mark.parametrize(
    "text",
    [
        "imatrix-lab imatrix shew x.gguf",
        "imatrix-lab corpus add FILE --lang nb",  # --name and --licence are required
        "imatrix-lab score run …",
        "imatrix-lab toolchain build --bakend cuda",
        "make quants LANG=nb",
        "make quant TOKEN=1",
        "pip install 'imatrix_lab[demon]'",
        "pip install something-else",
        "sudo apt install g--",
        "frobnicate it",
        "more text: --tokenz",
        "rm -x file",
    ],
)
def test_a_remedy_that_does_not_work_is_found(text, tmp_path, monkeypatch):
    with pytest.raises(pytest.fail.Exception):
        test_a_remedy_is_something_that_can_be_done(Remedy("x:1", text), tmp_path, monkeypatch)


# -- commands of the shell, on a small input


def shell(command: str, folder: Path) -> None:
    subprocess.run(["sh", "-c", command], cwd=folder, check=True, timeout=30)


@pytest.mark.skipif(not shutil.which("jq"), reason="no jq")
def test_jq_makes_lines_of_an_array(tmp_path):
    (tmp_path / "a b.json").write_text('[{"text": "en"}, {"text": "to"}]')
    shell("jq -c '.[]' 'a b.json' > 'a b.jsonl'", tmp_path)
    assert (tmp_path / "a b.jsonl").read_text().splitlines() == ['{"text":"en"}', '{"text":"to"}']


@pytest.mark.skipif(not shutil.which("iconv"), reason="no iconv")
@pytest.mark.parametrize("name", ["old text.txt", "old text.txt.gz"])
def test_iconv_makes_text_that_can_be_read(name, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "Høsten kom tidlig, og bjørkene på åsen gulnet før bærene var modne. " * 100
    raw = text.encode("cp1252")
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert run(["imatrix", "build", "--model", str(tiny), "--corpus", name]) == 1
    fix = re.search(r"try: (.*iconv -f .+)", capsys.readouterr().err)
    assert fix
    shell(fix[1], tmp_path)
    (copy,) = tmp_path.glob("*utf8*")
    assert copy.read_text(encoding="utf-8") == text


def test_a_folder_that_is_missing_is_made(tmp_path):
    where = tmp_path / "not yet" / "x.txt"
    error = files.disk_error(FileNotFoundError(2, "no such file", str(where)), where)
    assert isinstance(error, ImatrixLabError) and error.fix
    shell(error.fix.partition(", or")[0], tmp_path)
    assert where.parent.is_dir()
