"""score, show, agree and export as a user calls them; killed, interrupted, and two at once."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from imatrix_lab.cli.main import run
from imatrix_lab.records import summary
from tests.score import made

MODES = ["live", "cached"]
PROGRAM = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from imatrix_lab.cli import main
    from imatrix_lab.score.engine import Engine

    log, delay_s, decode = Path(sys.argv[1]), float(sys.argv[2]), Engine.decode

    def slow(self, step):
        logits = decode(self, step)
        with log.open("a") as file:
            file.write(f"{self.label} {hash(step.tokens.tobytes())}\\n")
        time.sleep(delay_s)
        return logits

    Engine.decode = slow
    sys.argv = ["imatrix-lab", *sys.argv[3:]]
    main.main()
    """
)
"""The console script, slower, with a line in a log for each decode."""


@pytest.fixture
def cache(own_directories, toolchain_in_own_cache, kernel_store):
    """The test's own cache, with the kernel in it."""
    return Path(os.environ["IMATRIX_LAB_CACHE"])


@pytest.fixture
def texts(tmp_path):
    """Two texts of a few documents."""
    files = {}
    for seed, name in enumerate(("nb", "en")):
        documents = made.documents([60, 30, 45, 20], seed=seed)
        files[name] = str(made.jsonl(tmp_path / f"{name}.jsonl", documents))
    return files


@pytest.fixture
def words(reference, quants, texts, tmp_path):
    """A command on two quants and two texts."""
    return [
        "score", "run", "--reference", str(reference),
        "--quant", str(quants["Q4_K_M"]), str(quants["Q2_K"]),
        "--text", f"nb={texts['nb']}", f"en={texts['en']}",
        "--ctx", "64", "--threads", "1", "--out", str(tmp_path / "out"), "--backend", "cpu",
    ]  # fmt: skip


NAMES = ["nb.tiny-Q4_K_M", "nb.tiny-Q2_K", "en.tiny-Q4_K_M", "en.tiny-Q2_K"]


# -- words and streams


def test_several_words_after_an_option(cache, words, tmp_path, capsys):
    """stdout is the files, in order; all else is talk."""
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "out" / f"{name}.parquet") for name in NAMES]
    assert all(Path(line).is_file() for line in out.splitlines())
    assert "score nb" in err and "tokens/s" in err


def test_options_once_each_mean_the_same(cache, words, quants, texts, capsys):
    assert run(words) == 0
    first = capsys.readouterr().out
    start = words[: words.index("--quant")]
    rest = words[words.index("--ctx") :]
    each = ["--quant", str(quants["Q4_K_M"]), "--text", f"nb={texts['nb']}"]
    each += ["--quant", str(quants["Q2_K"]), "--text", f"en={texts['en']}"]
    assert run([*start, *each, *rest]) == 0
    assert capsys.readouterr().out == first


def test_files_as_json(cache, words, capsys):
    assert run([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [Path(f).stem for f in shown] == NAMES


def test_a_file_without_a_name_is_called_by_its_own(cache, words, texts, capsys):
    at = words.index("--text")
    assert run([*words[: at + 1], texts["en"], *words[at + 3 :]]) == 0
    assert [Path(x).stem for x in capsys.readouterr().out.splitlines()] == NAMES[2:]


@pytest.mark.parametrize("option", ["--reference", "--quant", "--text"])
def test_a_missing_option(words, option, capsys):
    at = words.index(option)
    after = next(i for i in range(at + 1, len(words)) if words[i].startswith("--"))
    assert run([*words[:at], *words[after:]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"'{option}'" in err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--protocol", "wikitext"], "document"),
        (["--overlap", "0"], "--overlap"),
        (["--overlap", "63"], "must be from 1 to 62"),
        (["--protocol", "llamacpp", "--overlap", "8"], "--overlap"),
        (["--ctx", "31"], "--ctx"),
        (["--limit", "0"], "--limit"),
        (["--rest-share", "0.9"], "--rest-share"),
        (["--base-logits", "paper"], "live"),
        (["--threads", "0"], "--threads"),
        (["--backend", "abacus"], "cuda"),
        (["--colour"], "--colour"),
    ],
)
def test_options_that_cannot_be_meant(cache, words, tmp_path, more, said, capsys):
    assert run([*words, *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_expected_error_is_one(cache, words, reference, tmp_path, capsys):
    (tmp_path / "cut.gguf").write_bytes(reference.read_bytes()[:-1000])
    assert run([*words[:4], "--quant", str(tmp_path / "cut.gguf"), *words[7:]]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "truncated GGUF file" in err and "cut.gguf" in err


# -- what is shown


@pytest.fixture
def scored(cache, words, tmp_path):
    """A folder of scores."""
    assert run(words) == 0
    return tmp_path / "out"


def test_show(scored, capsys):
    assert run(["score", "show", str(scored)]) == 0
    out, err = capsys.readouterr()
    for one in summary.summaries([scored]):
        kld, ppl = one.kld_mean, one.ppl
        assert f"{kld.estimate:.4f}  {kld.low:.4f} … {kld.high:.4f}" in out
        assert f"{ppl.estimate:.3f}  {ppl.low:.3f} … {ppl.high:.3f}" in out
        assert f"{one.ppl_reference.estimate:.3f}" in out
    flat = " ".join(err.split())
    assert "nb: " in flat and "en: " in flat
    assert "4 clusters; protocol document, windows of 64; KLD exact" in flat


def test_show_as_json(scored, capsys):
    assert run(["score", "show", "--json", str(scored / "nb.tiny-Q2_K.parquet")]) == 0
    out, err = capsys.readouterr()
    ((one,), (wanted,)) = json.loads(out), summary.summaries([scored / "nb.tiny-Q2_K.parquet"])
    assert err == ""
    assert (one["text"], one["quant"], one["n_documents"]) == ("nb", "tiny-Q2_K", 4)
    for name in ("ppl", "kld_mean", "kld_q99", "same_top", "bits_per_byte"):
        assert one[name] == vars(getattr(wanted, name)), name
    assert one["signature"]["quant"]["type"] == "Q2_K"


def test_show_of_one_document(cache, words, tmp_path, capsys):
    """No interval, and no bracket."""
    assert run([*words, "--limit", "1"]) == 0
    assert "one document" in capsys.readouterr().err
    assert run(["score", "show", str(tmp_path / "out")]) == 0
    out, _ = capsys.readouterr()
    assert "nan" not in out.lower() and "…" not in out and "tiny-Q2_K" in out
    assert out.count("none: one cluster") == 2 * (3 + 7 * 2)


def test_agree(scored, words, tmp_path, capsys):
    other = [str(tmp_path / "other") if w == str(scored) else w for w in words]
    assert run([*other, "--rows", "32"]) == 0
    capsys.readouterr()
    assert run(["score", "agree", str(scored), str(tmp_path / "other")]) == 0
    out, err = capsys.readouterr()
    assert out.count("noise, quant") == out.count("quantization, B") == 4
    assert "the runs differ in: compute.n_rows" in err
    assert run(["score", "agree", str(scored), str(scored), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["differ_in"] == [] and len(shown["rows"]) == 16
    noise = [r for r in shown["rows"] if r["what"].startswith("noise")]
    assert {r["rms_delta_p"]["estimate"] for r in noise} == {0.0}


def test_a_folder_of_two_quants_is_compared(scored, capsys):
    assert run(["compare", str(scored), "--json"]) == 2
    assert "--any-size" in capsys.readouterr().err
    assert run(["compare", str(scored), "--json", "--any-size"]) == 0
    report = json.loads(capsys.readouterr().out)
    (gap,), shown = report["size_gaps"], report["comparisons"]
    assert gap["bytes_a"] != gap["bytes_b"]
    assert {c["metric"] for c in shown} >= {"kld_nats"}
    assert {c["text"] for c in shown} == {"nb", "en"}


def test_export_gives_every_record_back(scored, tmp_path, capsysbinary):
    file = scored / "nb.tiny-Q2_K.parquet"
    assert run(["score", "export", str(file)]) == 0
    raw = capsysbinary.readouterr().out
    assert run(["score", "export", str(file), "--out", str(tmp_path / "x.csv")]) == 0
    assert capsysbinary.readouterr().out.decode() == f"{tmp_path / 'x.csv'}\n"
    assert (tmp_path / "x.csv").read_bytes() == raw
    assert run(["score", "export", str(file), "--out", str(tmp_path / "x.csv")]) == 0
    (tmp_path / "x.csv").write_bytes(raw + b"a note\n")
    assert run(["score", "export", str(file), "--out", str(tmp_path / "x.csv")]) == 2
    assert run(["score", "export", str(file), "--out", str(file), "--force"]) == 2
    assert (tmp_path / "x.csv").read_bytes() == raw + b"a note\n"
    rows = list(csv.DictReader(io.StringIO(raw.decode())))
    wanted = made.records(file)
    assert list(rows[0]) == list(wanted)
    for name, column in wanted.items():
        texts = [row[name] for row in rows]
        values = (
            np.array(texts) if name == "doc_id" else np.array(texts, float).astype(column.dtype)
        )
        np.testing.assert_array_equal(values, column)


# -- killed, interrupted, two at once


@pytest.fixture(scope="module")
def start(score_store, subprocess_env, tools, reference, quants, tmp_path_factory):
    """A function: a cache, a mode -> a running command that logs its decodes."""
    text = tmp_path_factory.mktemp("text") / "long.jsonl"
    made.jsonl(text, made.documents([60, 50, 20] * 8))

    def begin(cache, mode, delay_s=0.0, kinds=("Q4_K_M", "Q2_K"), out=None):
        if not cache.exists():
            score_store(cache)
        argv = [sys.executable, "-c", PROGRAM, str(cache / "log"), str(delay_s), "score", "run"]
        argv += ["--reference", str(reference), "--quant", *(str(quants[k]) for k in kinds)]
        argv += ["--text", f"nb={text}", "--ctx", "64", "--threads", "1", "--base-logits", mode]
        argv += ["--backend", "cpu", "--out", str(out or cache / "out")]
        return subprocess.Popen(
            argv, env=subprocess_env(cache, tools) | {"PYTHONHASHSEED": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return begin


def finish(process):
    """Wait for a run to succeed; return the bytes of its files."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [Path(line).read_bytes() for line in out.splitlines()]


def decodes(folder):
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def wait_for(process, folder, n):
    """Wait until a run has decoded `n` times more; return whether it still runs."""
    goal = len(decodes(folder)) + n
    while process.poll() is None and len(decodes(folder)) < goal:
        time.sleep(0.002)
    return process.poll() is None


@pytest.fixture(scope="module", params=MODES)
def calm(request, start, tmp_path_factory):
    """A mode, and of an undisturbed run the files and the decodes."""
    folder = tmp_path_factory.mktemp("calm") / "cache"
    files = finish(start(folder, request.param))
    seen = decodes(folder)
    assert len(files) == 2 and len(set(seen)) == len(seen) > 60
    return request.param, files, seen


def test_killed_runs_end_with_the_same_bytes(calm, start, tmp_path):
    mode, files, seen = calm
    rough, rng, killed = tmp_path / "rough", random.Random(5), 0
    for _ in range(4):
        process = start(rough, mode, 0.004)
        if wait_for(process, rough, rng.randint(1, len(seen) // 5)):
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate(timeout=60)
        assert not list((rough / "out").glob("*")) or not killed
    assert killed >= 3
    assert finish(start(rough, mode)) == files
    models_at_once = 3 if mode == "live" else 1
    assert set(decodes(rough)) == set(seen)
    assert len(decodes(rough)) <= len(seen) + killed * models_at_once


def test_ctrl_c(calm, start, tmp_path):
    (mode, files, seen), rough = calm, tmp_path / "rough"
    process = start(rough, mode, 0.01)
    assert wait_for(process, rough, 10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and "same command" in err
    assert "Traceback" not in err
    assert finish(start(rough, mode)) == files
    assert len(decodes(rough)) <= len(seen) + 3


def test_two_at_once_of_one_command(calm, start, tmp_path):
    (mode, files, seen), both = calm, tmp_path / "both"
    processes = [start(both, mode, 0.002) for _ in range(2)]
    assert [finish(p) for p in processes] == [files, files]
    assert sorted(decodes(both)) == sorted(seen)


def test_two_at_once_in_opposite_order(calm, start, tmp_path):
    (mode, files, seen), both = calm, tmp_path / "both"
    orders = [("Q4_K_M", "Q2_K"), ("Q2_K", "Q4_K_M")]
    processes = [
        start(both, mode, 0.002, kinds, tmp_path / f"out {i}") for i, kinds in enumerate(orders)
    ]
    assert [finish(p) for p in processes] == [files, files[::-1]]
    assert sorted(decodes(both)) == sorted(seen)
