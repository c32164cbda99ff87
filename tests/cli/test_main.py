"""The console script as a user starts it: statuses, streams, and words."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import filelock
import pytest

from imatrix_lab.cli import main as cli_main
from imatrix_lab.cli import toolchain as upkeep
from imatrix_lab.core import store
from imatrix_lab.core.store import Store, fingerprint
from imatrix_lab.corpus import languages
from imatrix_lab.llamacpp import programs, toolchain
from imatrix_lab.models import resolve

PROGRAM = Path(sys.executable).parent / "imatrix-lab"


@pytest.fixture(autouse=True)
def toolchain_in_own_cache() -> None:
    """Instead of conftest's: these tests collect garbage, and want an empty cache."""


def lab(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the console script; no proxy that answers, so that a download would fail at once."""
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), nowhere)
    return subprocess.run(
        [str(PROGRAM), *words],
        env={**os.environ, **proxies, **{k.upper(): v for k, v in proxies.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def commands(
    command: click.Command = cli_main.cli, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner
            yield from commands(inner, (*words, name))


COMMANDS = dict(commands())


def store_is_empty() -> bool:
    return not any(Path(os.environ["IMATRIX_LAB_CACHE"]).iterdir())


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: " ".join(w) or "imatrix-lab")
def test_help(words: tuple[str, ...]) -> None:
    began = time.monotonic()
    done = lab(*words, "-h")
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("Usage: imatrix-lab")
    command = COMMANDS[words]
    if isinstance(command, click.Group):
        assert all(name in done.stdout for name in command.list_commands(click.Context(command)))
    if not words or not isinstance(command, click.Group):
        example = done.stdout.partition("Example:\n")[2]
        assert "imatrix-lab " + " ".join(words) in example.splitlines()[0]
    assert took_s < 5  # half a second on an idle machine
    assert store_is_empty()


def test_there_are_commands() -> None:
    assert {("tune",), ("corpus", "list"), ("store", "gc"), ("doctor",)} <= set(COMMANDS)


def test_version() -> None:
    done = lab("--version")
    assert (done.returncode, done.stdout[:11]) == (0, "imatrix-lab")


# -- usage


def test_no_language() -> None:
    done = lab("tune")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "make quant LANG=nb" in done.stderr
    listed = {line.split()[0] for line in done.stderr.splitlines() if line.startswith("    ")}
    assert listed >= set(languages.load_all())
    assert store_is_empty()


def test_unknown_language() -> None:
    done = lab("tune", "xx-klingon")
    assert done.returncode == 2
    assert "'xx-klingon'" in done.stderr
    assert " nb " in done.stderr
    assert store_is_empty()


def test_unknown_type() -> None:
    done = lab("tune", "nb", "--type", "Q4_K_M Q4_K_X")
    assert done.returncode == 2
    assert "'Q4_K_X'" in done.stderr
    assert all(name in done.stderr.split() for name in programs.QUANT_TYPES)
    assert store_is_empty()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tune", "nb", "--batch", "700"), "--batch 700 is not a multiple of --ctx 512"),
        (("tune", "nb", "--ctx", "100", "--batch", "250"), "not a multiple"),
        (("tune", "nb", "--tokens", "1"), "--tokens"),
        (("tune", "nb", "--tokens", "many"), "--tokens"),
        (("tune", "nb", "--backend", "abacus"), "cuda"),
        (("tune", "nb", "--tpye", "Q4_K_M"), "--tpye"),
        (("tune", "nb", "en"), "en"),
        (("tuen", "nb"), "tuen"),
        (("model", "show", "no-such-model"), "'no-such-model' is not a model"),
        (("imatrix", "build"), "--corpus"),
        (("store", "gc", "--days", "-1"), "--days"),
    ],
)
def test_usage_errors(words: tuple[str, ...], said: str) -> None:
    done = lab(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert store_is_empty()


def test_backend_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND", "abacus")
    done = lab("toolchain", "version")
    assert done.returncode == 2
    assert "BACKEND=abacus is not one of cpu, cuda" in done.stderr


# -- expected errors


@pytest.mark.parametrize("command", ["show", "fetch"])
def test_a_model_that_is_not_there(command: str, tmp_path: Path) -> None:
    done = lab("model", command, str(tmp_path / "model.gguf"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert store_is_empty()


def test_a_model_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 100)
    done = lab("model", "show", str(path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: damaged GGUF file")
    assert str(path) in done.stderr
    assert "  try: " in done.stderr


@pytest.mark.parametrize("command", ["path", "version"])
def test_a_toolchain_that_is_not_built(command: str) -> None:
    done = lab("toolchain", command)
    assert done.returncode == 1
    assert "try: imatrix-lab toolchain build" in done.stderr


def test_doctor_fails_where_something_needed_is_missing() -> None:
    done = lab("doctor")
    assert "is not built yet" in done.stdout
    assert done.returncode == 1
    found = json.loads(lab("doctor", "--json").stdout)
    assert any(f["needed"] and not f["ok"] and f["fix"] for f in found)


# -- a bug, and Ctrl-C


def test_a_bug_is_reported_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("the unexpected")

    monkeypatch.setattr(upkeep.options, "session", broken)
    assert cli_main.run(["store", "ls"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bug: RuntimeError: the unexpected" in captured.err
    assert "Traceback" not in captured.err
    log = Path(captured.err.split("the details are in ")[1].strip())
    assert log.is_relative_to(os.environ["IMATRIX_LAB_CACHE"])
    text = log.read_text()
    assert "Traceback" in text
    assert "in broken" in text
    assert "imatrix_lab 0." in text


def test_a_bug_where_no_log_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken() -> None:
        raise RuntimeError("the unexpected")

    (tmp_path / "file").touch()
    monkeypatch.setenv("IMATRIX_LAB_CACHE", str(tmp_path / "file" / "inside"))
    monkeypatch.setattr(upkeep.options, "session", broken)
    assert cli_main.run(["store", "ls"]) == 3
    assert "in broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_terminals_that_are_not_utf8(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([str(PROGRAM), *words], capture_output=True, check=False, timeout=60)

    listed = run("corpus", "list", "Bokmål")
    assert listed.returncode == 0 and b"fineweb-2" in listed.stdout
    (language,) = json.loads(run("corpus", "list", "മലയാളം", "--json").stdout)
    assert language["native_name"] == "മലയാളം"
    unknown = run("corpus", "list", "ø⋯മ")
    assert unknown.returncode == 2 and b"no corpus for a language" in unknown.stderr
    model = tmp_path / "മø.gguf"
    model.write_bytes(b"GGUF")
    damaged = run("model", "show", str(model))
    assert damaged.returncode == 1 and b"Traceback" not in damaged.stderr


def test_a_bug_with_a_name_that_is_no_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_main.cli, "main", lambda *_, **__: {}["\udce9 \ud800 \x1b[2J"])
    assert cli_main.run(["doctor", "caf\udce9"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("bug: KeyError") and "\x1b" not in said


def test_the_home_folder_in_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no records")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = lab("score", "show", "~/x.parquet")
    assert str(tmp_path / "x.parquet") in done.stderr


def test_ctrl_c() -> None:
    """While it waits for a build of another process."""
    name = f"toolchain-{fingerprint('toolchain', toolchain.inputs('cpu'))[:16]}"
    locks = Store().root / "locks"
    locks.mkdir()
    with filelock.FileLock(locks / f"{name}.lock"):
        process = subprocess.Popen(
            [str(PROGRAM), "toolchain", "build", "--backend", "cpu"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "is being built elsewhere" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "continue" in err
    assert "Traceback" not in err


# -- data on stdout


def test_store_ls_json() -> None:
    assert json.loads(lab("store", "ls", "--json").stdout) == []
    Store().get("corpus", "nb", {"n": 1}, lambda out, scratch: {"x": (out / "a").write_text("abc")})
    (Store().root / "work" / "quant-0123456789abcdef").mkdir(parents=True)
    done = lab("store", "ls", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert [(r["kind"], r["size_bytes"]) for r in rows] == [("corpus", 3), ("unfinished", 0)]
    assert all(r["unused_days"] < 1 for r in rows)


def test_corpus_list_json() -> None:
    done = lab("corpus", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [n["code"] for n in found] == list(languages.load_all())
    assert all(n["sources"][0]["licence"] for n in found)


def test_corpus_list_in_a_pipe_has_whole_lines() -> None:
    done = lab("corpus", "list")
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("nb ")]
    assert "Norwegian Bokmål" in line
    assert "dataset-build" in line
    assert "\x1b" not in done.stdout


def test_store_gc() -> None:
    assert store_is_empty()
    Store().get("corpus", "nb", {"n": 1}, lambda out, scratch: {"x": (out / "a").write_text("abc")})
    assert "0 removed" in lab("store", "gc").stderr
    done = lab("store", "gc", "--days", "0")
    assert done.returncode == 0
    assert "1 removed" in done.stderr
    assert json.loads(lab("store", "ls", "--json").stdout) == []


def test_dry_run_on_an_empty_cache_needs_no_network() -> None:
    done = lab("tune", "no", "--type", "Q4_K_M Q3_K_S", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "no means nb, Norwegian Bokmål\n"
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["step", "state", "detail"]
    steps = ("toolchain", "model demo", "corpus nb", "imatrix nb", "quantize Q4_K_M",
             "quantize Q3_K_S", "quick answer Q4_K_M")  # fmt: skip
    assert len(lines) == len(steps)
    for step, line in zip(steps, lines, strict=True):
        assert line.startswith(step)
        assert " to do " in line
    assert list(Store().artifacts()) == []
    assert list(Store().unfinished()) == []


def test_dry_run_as_json() -> None:
    done = lab("tune", "nb", "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    steps = json.loads(done.stdout)
    assert [s["cached"] for s in steps] == [False] * 7
    assert steps[0]["name"] == "toolchain"


def test_a_store_that_is_removed_under_a_run_is_no_bug(tmp_path, monkeypatch, capsys):
    def gone(*args, **rest):
        (store.default_root() / "work" / "quant-0" / "part.gguf").open()

    monkeypatch.setattr(resolve, "resolve", gone)
    assert cli_main.run(["model", "show", str(tmp_path / "x.gguf")]) == 1
    err = capsys.readouterr().err
    assert "removed while it was used" in err and "part.gguf" in err and "again" in err
