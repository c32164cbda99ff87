"""The real Makefile, with a stand-in for the program it calls."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parent.parent / "Makefile"
MAKE = shutil.which("gmake") or shutil.which("make")
# Prints its arguments and its environment, one a line.
STAND_IN = """#!/bin/sh
for word in "$@"; do printf 'argument %s\\n' "$word"; done
env | sed 's/^/variable /'
"""


@dataclass(frozen=True)
class Call:
    """What the stand-in saw."""

    arguments: list[str]
    environment: dict[str, str]

    def option(self, name: str) -> str:
        return self.arguments[self.arguments.index(name) + 1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder where ``make setup`` is done."""
    if MAKE is None:
        pytest.skip("no make on this machine")
    path = tmp_path / "checkout"
    (path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(MAKEFILE, path)
    program = path / ".venv" / "bin" / "imatrix-lab"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (path / "pyproject.toml").touch()
    os.utime(path / "pyproject.toml", (1, 1))
    (path / ".venv" / ".ready").touch()
    return path


def make(checkout: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LANG", "LC_", "MAKE"))}
    return subprocess.run(
        [str(MAKE), *words],
        cwd=checkout,
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def quant(checkout: Path, *words: str, **environment: str) -> Call:
    done = make(checkout, "quant", *words, **environment)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return Call(
        [text for kind, text in lines if kind == "argument"],
        dict(text.split("=", 1) for kind, text in lines if kind == "variable" and "=" in text),
    )


def test_a_language_on_the_command_line(checkout: Path) -> None:
    call = quant(checkout, "LANG=nb")
    assert call.arguments[:2] == ["tune", "nb"]
    assert "LANG" not in call.environment
    assert "LANGUAGE" not in call.environment
    assert call.environment["LC_ALL"] == "C.UTF-8"
    assert "nb" not in call.environment.get("MAKEFLAGS", "").split()


@pytest.mark.parametrize("locale", ["en_US.UTF-8", "nb_NO.UTF-8", "nb", "C"])
def test_the_locale_is_not_a_language(checkout: Path, locale: str) -> None:
    call = quant(checkout, LANG=locale, LANGUAGE=locale, LC_ALL=locale)
    assert call.arguments[:2] == ["tune", "--type"]
    assert "LANG" not in call.environment
    assert call.environment["LC_ALL"] == "C.UTF-8"


def test_the_command_line_wins_over_the_locale(checkout: Path) -> None:
    call = quant(checkout, "LANG=ml", LANG="nb_NO.UTF-8")
    assert call.arguments[:2] == ["tune", "ml"]
    assert "LANG" not in call.environment
    assert call.environment["LC_ALL"] == "C.UTF-8"


def test_defaults(checkout: Path) -> None:
    call = quant(checkout, "LANG=nb")
    assert call.arguments == [
        "tune", "nb", "--type", "Q4_K_M Q5_K_M", "--model", "demo", "--tokens", "65536",
        "--out", "quants",
    ]  # fmt: skip


def test_a_study(checkout: Path) -> None:
    words = ["argument study", "argument run"]
    done = make(checkout, "study", "RECIPE=my recipes/a.toml", "FLAGS=--dry-run --jobs 1")
    lines = [line for line in done.stdout.splitlines() if line.startswith("argument")]
    flags = [f"argument {word}" for word in ("--dry-run", "--jobs", "1")]
    assert lines == [*words, "argument my recipes/a.toml", *flags]
    assert "argument recipes/quick-nb.toml" in make(checkout, "study").stdout


def test_two_types_are_one_argument(checkout: Path) -> None:
    call = quant(checkout, "LANG=nb", "TYPES=Q3_K_S IQ2_M")
    assert call.option("--type") == "Q3_K_S IQ2_M"


def test_a_path_with_a_space(checkout: Path) -> None:
    call = quant(checkout, "LANG=nb", "MODEL=my models/a b.gguf", "OUT=my quants")
    assert call.option("--model") == "my models/a b.gguf"
    assert call.option("--out") == "my quants"


@pytest.mark.parametrize(
    "name", ['it\'s "so".gguf', "a$b `c` \\\\d;e", "$(x)", "-a,b=c", "മലയാളം ø"]
)
def test_a_path_with_any_character(checkout: Path, name: str) -> None:
    call = quant(checkout, "LANG=Norwegian Bokmål", f"MODEL={name}", f"OUT={name}")
    assert call.arguments[1] == "Norwegian Bokmål"
    assert call.option("--model") == call.option("--out") == name


def test_flags_are_words(checkout: Path) -> None:
    call = quant(checkout, "LANG=nb", "TOKENS=1024", "FLAGS=--ctx 256 --dry-run")
    assert call.arguments[-3:] == ["--ctx", "256", "--dry-run"]
    assert call.option("--tokens") == "1024"


@pytest.mark.parametrize(("quick", "option"), [("0", "--no-quick"), ("1", "--quick")])
def test_a_small_answer_is_refused_or_demanded(checkout: Path, quick: str, option: str) -> None:
    assert quant(checkout, "LANG=nb", f"QUICK={quick}").arguments[-1] == option


@pytest.mark.parametrize("way", ["awq", "feedback"])
def test_ways_of_rounding(checkout: Path, way: str) -> None:
    assert f"--{way}" in quant(checkout, "LANG=nb", f"{way.upper()}=1").arguments
    assert f"--{way}" not in quant(checkout, "LANG=nb", f"{way.upper()}=0").arguments


@pytest.mark.parametrize(
    "word", ["QUICK=no", "AWQ=no", "FEEDBACK=yes", "QUICK=yes", "TOKEN=2048", "TYPE=Q3_K_S"]
)
def test_a_setting_or_value_that_make_does_not_know_starts_nothing(
    checkout: Path, word: str
) -> None:
    done = make(checkout, "quant", "LANG=nb", word)
    assert done.returncode == 2 and word.partition("=")[0] in done.stderr
    assert "argument" not in done.stdout


def test_a_study_for_the_card(checkout: Path) -> None:
    call = quant(checkout, "LANG=nb", "STUDY=my studies/one")
    assert call.option("--study") == "my studies/one"


def test_the_backend_reaches_the_program(checkout: Path) -> None:
    assert quant(checkout, "LANG=nb", "BACKEND=cuda").environment["BACKEND"] == "cuda"
    assert quant(checkout, "LANG=nb", BACKEND="vulkan").environment["BACKEND"] == "vulkan"
    assert "BACKEND" not in quant(checkout, "LANG=nb").environment


def test_the_bindings_are_not_built_with_a_second_llama_cpp(checkout: Path) -> None:
    flags = quant(checkout, "LANG=nb").environment["CMAKE_ARGS"]
    assert "-DLLAMA_BUILD=OFF" in flags.split()


def test_a_failure_is_passed_on(checkout: Path) -> None:
    program = checkout / ".venv" / "bin" / "imatrix-lab"
    program.write_text("#!/bin/sh\nexit 2\n")
    assert make(checkout, "quant", "LANG=nb").returncode == 2


def test_make_alone_lists_the_targets(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0, done.stderr
    assert "make quant LANG=nb" in done.stdout
    listed = {line.split(":")[0].strip() for line in done.stdout.splitlines() if ":" in line}
    assert listed == set(phony())
    assert "argument" not in done.stdout  # nothing was run


def phony() -> list[str]:
    (line,) = [x for x in MAKEFILE.read_text().splitlines() if x.startswith(".PHONY:")]
    return line.split()[1:]


def test_an_old_python_is_told(checkout: Path) -> None:
    (checkout / ".venv" / ".ready").unlink()
    old = checkout / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(checkout, "quant", "LANG=nb", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stdout


@pytest.mark.parametrize("setting", ["TYPE=Q3_K_S", "TOKEN=2048", "LANGS=nb", "type=Q3_K_S"])
def test_a_misspelt_setting_stops_before_any_work(checkout: Path, setting: str) -> None:
    done = make(checkout, "quant", "LANG=nb", setting)
    assert done.returncode == 2
    assert "argument" not in done.stdout
    assert setting.partition("=")[0] in done.stderr and "TYPES" in done.stderr


def test_the_environment_may_hold_any_word(checkout: Path) -> None:
    assert quant(checkout, "LANG=nb", TYPE="x", TOKEN="y").arguments[:2] == ["tune", "nb"]


def test_sizes_take_the_place_of_the_usual_types(checkout: Path) -> None:
    call = quant(checkout, "LANG=nb", "SIZE=3.5GiB Q4_K_M", "BITS=4.5")
    words = list(zip(call.arguments, call.arguments[1:], strict=False))
    assert call.option("--type") == ""
    for pair in (("--size", "3.5GiB"), ("--size", "Q4_K_M"), ("--bits", "4.5")):
        assert pair in words
    assert quant(checkout, "LANG=nb", "SIZE=Q4_K_M", "TYPES=Q6_K").option("--type") == "Q6_K"
    assert "--size" not in quant(checkout, "LANG=nb").arguments


def test_a_size_with_any_character_is_one_word(checkout: Path) -> None:
    assert quant(checkout, "LANG=nb", "SIZE=3';$$HOME").option("--size") == "3';$$HOME"
