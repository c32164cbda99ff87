"""The whole path on the small model: files, manifests, repeats, kills."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imatrix_lab.cli import main
from imatrix_lab.core.files import sha256_file
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import deliver

COMMAND = str(Path(sys.executable).parent / "imatrix-lab")


def tune(tiny, out, *extra):
    return [
        COMMAND, "tune", "et", "--model", str(tiny), "--tokens", "4096", "--ctx", "128",
        "--threads", "1", "--type", "Q4_K_M Q3_K_S", "--out", str(out), "--no-quick", *extra,
    ]  # fmt: skip


def manifests(cache):
    """Every manifest's bytes, by its place in the store."""
    return {
        str(p.relative_to(cache)): p.read_bytes() for p in sorted(cache.glob("*/*/manifest.json"))
    }


@pytest.fixture(scope="module")
def calm(tools, tiny, tmp_path_factory, subprocess_env):
    """One undisturbed run: its folder, its environment, what it printed."""
    folder = tmp_path_factory.mktemp("calm")
    env = subprocess_env(folder / "cache", tools)
    began = time.monotonic()
    run = subprocess.run(
        tune(tiny, folder / "out"), env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder, env, run, time.monotonic() - began


def test_files_manifest_and_card(calm):
    folder, _, run, _ = calm
    out = folder / "out"
    names = {p.name for p in out.iterdir()}
    quants = {"tiny-et-Q4_K_M.gguf", "tiny-et-Q3_K_S.gguf"}
    assert quants | {"tiny-et.imatrix.gguf", "manifest.json", "README.md"} <= names
    entries = json.loads((out / "manifest.json").read_text())["files"]
    for name in quants:
        assert entries[name]["sha256"] == sha256_file(out / name)
        assert entries[name]["language"] == "et" and entries[name]["fallback"] == []
        assert name in run.stdout
        metadata = read_header(out / name).metadata
        assert metadata["imatrix_lab.language"] == "et"
        assert metadata["imatrix_lab.corpus.sha256"] == entries[name]["corpus_sha256"]
    for text in ((out / "manifest.json").read_text(), (out / "README.md").read_text()):
        assert str(folder) not in text and str(Path.home()) not in text


def test_the_card_is_one_that_the_hub_reads(calm):
    from huggingface_hub import ModelCard

    card = ModelCard((calm[0] / "out" / "README.md").read_text())
    assert card.data.language == ["et"] and card.data.license == "cc0-1.0"
    assert card.data.library_name == "gguf" and "imatrix" in card.data.tags
    assert "tiny-et-Q4_K_M.gguf" in card.text and "make quant LANG=et" in card.text


def test_a_second_run_does_nothing_again(calm, tiny):
    folder, env, _, _ = calm
    before = manifests(folder / "cache")
    run = subprocess.run(
        tune(tiny, folder / "out", "--json"), env=env, capture_output=True, text=True, check=True
    )
    assert all(q["seconds"] is None for q in json.loads(run.stdout)["quants"])
    assert manifests(folder / "cache") == before


def test_a_deleted_output_is_put_back_and_a_foreign_file_replaced_only_by_force(calm, tiny):
    folder, env, _, _ = calm
    target = folder / "out" / "tiny-et-Q4_K_M.gguf"
    digest = sha256_file(target)
    target.unlink()
    subprocess.run(tune(tiny, folder / "out"), env=env, capture_output=True, check=True)
    assert sha256_file(target) == digest
    target.unlink()
    target.write_bytes(b"something else")
    argv = tune(tiny, folder / "out")
    run = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and str(target) in run.stderr
    assert target.read_bytes() == b"something else"
    run = subprocess.run([*argv, "--force"], env=env, capture_output=True, text=True, check=True)
    assert str(target) in run.stderr and "replaced" in run.stderr
    assert sha256_file(target) == digest


def test_dry_run_says_what_is_cached_and_does_nothing(calm, tiny, tools, tmp_path, subprocess_env):
    folder, env, _, _ = calm
    there = subprocess.run(
        tune(tiny, folder / "out", "--dry-run", "--json"), env=env, capture_output=True, check=True
    )
    steps = json.loads(there.stdout)
    assert len(steps) == 6 and all(s["cached"] for s in steps)
    assert any("MiB" in s["detail"] for s in steps if s["name"] == "quantize Q4_K_M")
    empty = subprocess_env(tmp_path / "cache", tools)
    run = subprocess.run(
        tune(tiny, tmp_path / "out", "--dry-run", "--json"),
        env=empty,
        capture_output=True,
        check=True,
    )
    assert [s["cached"] for s in json.loads(run.stdout)] == [True, True, False, False, False, False]
    assert not (tmp_path / "out").exists()


def test_a_rerun_says_what_changed(calm, tiny):
    folder, env, _, _ = calm
    argv = [w if w != "4096" else "2048" for w in tune(tiny, folder / "other")]
    run = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert "re-running imatrix tiny-et: changed: corpus_sha256, n_windows" in run.stderr


def test_another_type_reuses_all_the_rest(calm, tiny):
    folder, env, _, _ = calm
    argv = [*tune(tiny, folder / "out"), "--type", "Q5_K_S"]
    run = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert "quantize Q5_K_S" in run.stderr and "re-running" not in run.stderr
    entries = json.loads((folder / "out" / "manifest.json").read_text())["files"]
    assert "tiny-et-Q5_K_S.gguf" in entries and "tiny-et-Q4_K_M.gguf" in entries


def test_killed_at_any_moment_then_whole(calm, tiny, tools, tmp_path, subprocess_env):
    """Ten kills once it works, over as many caches as it takes: each until a run gets through."""
    folder, _, _, seconds = calm
    rng, killed, caches = random.Random(11), 0, 1
    while killed < 10:
        cache, out = tmp_path / f"cache-{caches}", tmp_path / f"out-{caches}"
        process = subprocess.Popen(
            tune(tiny, out), env=subprocess_env(cache, tools), stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.2, 0.5) * seconds)
        if process.poll() is not None:
            same_as_calm(folder, cache, out)
            caches += 1
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        for path in made_in(cache):  # what is there is whole
            for name, entry in json.loads(path.read_text())["files"].items():
                assert sha256_file(path.parent / name) == entry["sha256"]
    run = subprocess.run(
        tune(tiny, out), env=subprocess_env(cache, tools), capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    same_as_calm(folder, cache, out)


def made_in(cache):
    """The manifests of everything but the toolchain."""
    return [p for p in sorted(cache.glob("*/*/manifest.json")) if p.parts[-3] != "toolchain"]


def same_as_calm(folder, cache, out):
    ours = {p.relative_to(cache): p.read_bytes() for p in made_in(cache)}
    assert len(ours) >= 5
    for name, raw in ours.items():
        assert (folder / "cache" / name).read_bytes() == raw, name
    names = [p.name for p in out.glob("*.gguf")]
    assert len(names) == 3
    assert all(sha256_file(out / n) == sha256_file(folder / "out" / n) for n in names)


def test_stopped_while_the_files_come_the_next_run_goes_on(calm, tiny, tmp_path, monkeypatch):
    """Before each file in turn, the manifest among them."""
    for key, value in calm[1].items():
        monkeypatch.setenv(key, value)
    argv, n_left = tune(tiny, tmp_path / "out")[1:], [0]
    assert main.run(tune(tiny, tmp_path / "whole")[1:]) == 0

    def stopping(function):
        def wrapped(*arguments):
            n_left[0] -= 1
            if n_left[0] < 0:
                raise KeyboardInterrupt
            return function(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("place", "write_whole"):
            patch.setattr(deliver, name, stopping(getattr(deliver, name)))
        for n in itertools.count():
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            n_left[0] = n
            if (status := main.run(argv)) == 0:
                break
            n_left[0] = 99
            assert status == 130 and main.run(argv) == 0
            for name in ("manifest.json", "README.md"):
                made = (tmp_path / "out" / name).read_bytes()
                assert made == (tmp_path / "whole" / name).read_bytes()
    assert n == 7  # three files; the manifest before them, then it and the card


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_the_programs(tiny, tools, tmp_path, subprocess_env, number):
    """So do `kill`, and a terminal that is closed."""
    env = subprocess_env(tmp_path / "cache", tools)
    argv = [w if w != "4096" else "60000" for w in tune(tiny, tmp_path / "out")]
    before = signal.signal(number, signal.SIG_DFL)  # it is ignored where nohup has started us
    process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
    signal.signal(number, before)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("imatrix et"):
            break
    time.sleep(2)
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "same command" in rest
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in left


@pytest.mark.parametrize("name", ["README.md", "manifest.json"])
def test_a_folder_with_a_readme_of_its_own_is_refused_before_any_work(
    tiny, tools, tmp_path, subprocess_env, name
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    env = subprocess_env(tmp_path / "cache", tools)
    run = subprocess.run(
        tune(tiny, tmp_path / "out"), env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2 and name in run.stderr and "OUT=" in run.stderr
    assert (tmp_path / "out" / name).read_text() == "{}"
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {"toolchain"}


def test_a_full_disk_is_told_and_the_next_run_goes_on(
    tiny, tools, small_disk, tmp_path, subprocess_env
):
    env = subprocess_env(small_disk / "cache", tools)
    argv = tune(tiny, small_disk / "out")
    run = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "MiB is free" in run.stderr, run.stderr
    assert "imatrix-lab store gc" in run.stderr and "Traceback" not in run.stderr
    assert not (small_disk / "out").exists()
    kinds = {p.parts[-3] for p in made_in(small_disk / "cache")}
    corpus = {"fetched", "text", "sources", "corpus"}
    assert kinds == corpus | {"load", "kernel", "imatrix", "perplexity"}  # what fitted is whole
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    again = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "imatrix et" not in again.stderr.replace("re-running", "")
