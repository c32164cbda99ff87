"""corpus list, build, add, show as a user types them; with chats, through to an imatrix."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from imatrix_lab.cli import main as cli_main
from imatrix_lab.core import paths
from tests import tiny_model
from tests.corpus.made_up import LANGUAGE, prose

PROGRAM = Path(sys.executable).parent / "imatrix-lab"
CHATML = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"


def add_language(code):
    folder = paths.user_dir()
    folder.mkdir(parents=True, exist_ok=True)
    text = LANGUAGE.format(code=code, name=f"Language {code}")
    (folder / f"{code}.toml").write_text(text)


@pytest.fixture
def lab(tmp_path):
    """A function: words -> the finished command; in a folder of its own."""
    for code in ("qaa", "qab"):
        add_language(code)
        rng = random.Random(code)
        lines = [json.dumps({"body": prose(rng)}) for _ in range(260)]
        (tmp_path / f"{code}.jsonl").write_text("\n".join(lines))

    def run(*words):
        return subprocess.run(
            [str(PROGRAM), *map(str, words)],
            cwd=tmp_path, env=dict(os.environ), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    for code in ("qaa", "qab"):
        done = run("corpus", "add", f"{code}.jsonl", "--lang", code, "--name", "mine",
                   "--licence", "CC0-1.0", "--field", "body")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"imatrix-lab corpus build {code} --source mine" in done.stderr
    return run


def test_a_source_is_undone_as_it_says(lab):
    again = lab("corpus", "add", "qaa.jsonl", "--lang", "qaa", "--name", "late",
                "--licence", "CC0-1.0", "--field", "body")  # fmt: skip
    assert "late" in lab("corpus", "list", "qaa").stdout
    undo = again.stderr.partition("to undo it: ")[2].splitlines()[0]
    subprocess.run(undo, shell=True, check=True)
    assert "late" not in lab("corpus", "list", "qaa").stdout


def test_from_text_of_one_s_own_to_a_corpus(lab, tiny, tmp_path):
    words = ("--tokens", "3000", "--model", tiny)
    done = lab("corpus", "build", "qaa", *words)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert {p.name for p in folder.iterdir()} == {
        "calibration.txt", "heldout.jsonl", "manifest.json",
    }  # fmt: skip
    assert "3,000 tokens in" in done.stderr and "CC0-1.0" in done.stderr
    again = lab("corpus", "build", "qaa", *words, "--json")
    assert json.loads(again.stdout)["n_tokens"] == 3000
    assert "cleaning" not in again.stderr
    mixed = lab("corpus", "build", "qaa=0.75,qab=0.25", *words, "--json")
    assert json.loads(mixed.stdout)["language"] == "qaa75-qab25"
    samples = lab("corpus", "build", "qaa", "--samples", "3", *words)
    assert len(set(samples.stdout.split())) == 3 and "sample 3/3" in samples.stderr

    shown = lab("corpus", "show", "qaa")
    assert shown.returncode == 0, shown.stderr
    for word in ("Language qaa (qaa)", "held out", "mine", "CC0-1.0"):
        assert word in shown.stdout, shown.stdout
    assert json.loads(lab("corpus", "show", folder, "--json").stdout)["kind"] == "corpus"
    listed = lab("corpus", "list", "qaa")
    assert "mine" in listed.stdout and "your files" in listed.stdout


def test_chats_in_the_model_s_template_reach_the_imatrix(lab, tmp_path):
    model = tiny_model.write(tmp_path / "chat.gguf", chat_template=CHATML)
    words = ("--tokens", "3000", "--model", model)
    done = lab("corpus", "build", "en", "--source", "written", "--chat", "0.3", *words)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    text = (folder / "calibration.txt").read_text()
    assert "<|user|>" in text and "<|assistant|>" in text
    assert json.loads((folder / "manifest.json").read_text())["facts"]["parse_special"]
    made = lab("imatrix", "build", "--model", model, "--corpus", folder, "--ctx", "128",
               "--out", "x.gguf")  # fmt: skip
    assert made.returncode == 0, made.stderr
    (inputs,) = [
        json.loads(p.read_text())["inputs"]
        for p in Path(os.environ["IMATRIX_LAB_CACHE"]).glob("imatrix/*/manifest.json")
    ]
    assert inputs["parse_special"]


def test_a_text_of_one_s_own_with_a_fault_breaks_its_language_alone(capfd):
    add_language("qaa")
    bad = paths.user_dir() / "own" / "qaa" / "mine.toml"
    bad.parent.mkdir(parents=True)
    bad.write_text("kind = 'files'")
    assert cli_main.run(["corpus", "list"]) == 0
    output = capfd.readouterr()
    assert "qaa" in output.out and "left out: missing key 'licence'" in output.err
    assert cli_main.run(["corpus", "list", "nb"]) == 0
    assert "left out" not in capfd.readouterr().err
    assert cli_main.run(["corpus", "list", "qaa"]) == 2
    assert str(bad) in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("build", "klingonsk"), "'klingonsk'"),
        (("build", "qaa", "--source", "other"), "'other'"),
        (("build", "qaa", "--licence", "free"), "'--licence'"),
        (("build", "nb=0.5,en"), "'en'"),
        (("list", "klingon"), "'klingon'"),
        (("show", "qaa"), "imatrix-lab corpus build qaa"),
        (("add", "x.doc", "--lang", "qaa", "--name", "x", "--licence", "MIT"), "x.doc"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_a_mistake_is_named(tiny, words, named, capfd):
    add_language("qaa")
    model = ("--model", str(tiny)) if words[0] == "build" else ()
    assert cli_main.run(["corpus", *words, *model]) in {1, 2}
    stderr = capfd.readouterr().err
    assert named in stderr and "Traceback" not in stderr, stderr
