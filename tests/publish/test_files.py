"""What is published of a folder that the real programs filled, and the way to the Hub and back."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadModel, BadRecords, UsageError
from imatrix_lab.llamacpp import server
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.publish import files, others, upload
from imatrix_lab.publish.files import CARD
from imatrix_lab.types import GenerateItem
from tests import tiny_model
from tests.publish.conftest import TOKEN

REPO = "user/tiny-et-GGUF"
Q4, Q8 = "tiny-et-Q4_K_M.gguf", "tiny-et-Q8_0.gguf"


def lab(env, *words, **settings):
    code = "import sys; from imatrix_lab.cli.main import main; sys.argv[0] = 'imatrix-lab'; main()"
    argv = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=True, **settings)


@pytest.fixture(scope="module")
def made(tools, tiny, tmp_path_factory, subprocess_env):
    """A folder of `tune`, records of its files and of a standard mix, and their environment."""
    folder = tmp_path_factory.mktemp("made")
    env = subprocess_env(folder / "cache", tools)
    options = ["--model", tiny, "--ctx", "128", "--threads", "1"]
    lab(env, "tune", "et", *options, "--tokens", "4096", "--type", "Q4_K_M Q8_0",
        "--no-quick", "--out", folder / "quants")  # fmt: skip
    lab(env, "quantize", *options, "--imatrix", "none", "--type", "Q4_K_M", "--heldout", "et",
        "--out", folder / "plain")  # fmt: skip
    quants = [*(folder / "quants" / n for n in (Q4, Q8)), folder / "plain" / "tiny-Q4_K_M.gguf"]
    lab(env, "score", "run", "--reference", tiny, "--quant", *quants, "--text", "et",
        "--limit", "3", "--ctx", "128", "--threads", "1", "--out", folder / "scores")  # fmt: skip
    return folder, env


@pytest.fixture
def session(made):
    return Session(Store(made[0] / "cache"), Silent())


def collect(made, session, **options):
    settings = {"records": [made[0] / "scores"], "with_text": False, "dry_run": False, **options}
    return files.collect(made[0] / "quants", REPO, session=session, **settings)


def test_a_changed_number_in_the_manifest_is_not_published(made, session, tmp_path):
    shutil.copytree(made[0] / "quants", tmp_path / "quants")
    manifest = tmp_path / "quants" / "manifest.json"
    text = manifest.read_text()
    place = re.search(r'"perplexity": ?(\d)', text).start(1)
    manifest.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    with pytest.raises(UsageError, match="not as it was written"):
        files.collect(tmp_path / "quants", REPO, [], False, session, False)


def test_what_goes_along(made, session):
    collected = collect(made, session, with_text=True)
    names = {item.name for item in collected.items}
    assert {Q4, Q8, "tiny-et.imatrix.gguf", "manifest.json", "results.json"} <= names
    assert {"kld-by-size.svg", CARD} <= names and collected.items[-1].name == CARD
    for item in collected.items:
        if isinstance(item.content, Path):
            assert sha256_file(item.content) == item.sha256
        else:
            assert (
                str(made[0]) not in item.content.decode() and "/root" not in item.content.decode()
            )
    results = json.loads(next(i.content for i in collected.items if i.name == "results.json"))
    assert {row["file"] for row in results["files"]} == {Q4, Q8}
    assert results["files"][0]["summary"]["signature"]["text"]["label"] == "et"


def test_the_card_compares_with_the_standard_mix_of_the_same_size(made, session):
    card = collect(made, session).card()
    [row] = [line for line in card.splitlines() if line.startswith(f"| {Q4} | et | ")]
    assert "no imatrix Q4_K_M" in row
    [row] = [line for line in card.splitlines() if line.startswith(f"| {Q8} | et | ")]
    assert "no imatrix" not in row


def test_texts_only_where_they_may_be_given(made, session, monkeypatch):
    named = {i.name for i in collect(made, session).items}
    given = {i.name for i in collect(made, session, with_text=True).items}
    assert given - named <= {"calibration-et.txt", "heldout-et.jsonl"} and given > named
    monkeypatch.setattr(files, "_GIVEN", ())
    refused = collect(made, session, with_text=True)
    assert "calibration-et.txt" not in {i.name for i in refused.items}
    assert any("licence" in note for note in refused.notes)
    assert "not here" in refused.card()


def test_a_large_file_is_split_and_its_parts_load(made, session, tools, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_BYTES", 1_100_000)
    collected = collect(made, session)
    parts = [i for i in collected.items if i.name.startswith("tiny-et-Q8_0-0000")]
    assert len(parts) > 1 and not any(i.name == Q8 for i in collected.items)
    assert all(i.size_bytes <= files.LARGEST_BYTES for i in parts)
    assert parts[0].name.endswith(f"-00001-of-0000{len(parts)}.gguf")
    assert read_header(parts[1].content).metadata["split.no"] == 1
    assert parts[0].name in collected.card()
    model = resolve.resolve(str(parts[0].content), session)
    whole = resolve.resolve(str(made[0] / "quants" / Q8), session)
    assert model.facts.tensor_types == whole.facts.tensor_types
    assert any("split" in note for note in collect(made, session, dry_run=True).notes)


def test_metadata_with_a_path_of_a_machine(tmp_path):
    for value in ("/home/somebody/text.txt", "C:\\texts\\nb.txt", "~/x/y", "/mnt/d/nb.txt"):
        path = tiny_model.write(
            tmp_path / "m.gguf", extra=lambda w, v=value: w.add_string("quantize.imatrix.file", v)
        )
        with pytest.raises(BadModel, match="quantize"):
            files.check_metadata(path)
    for value in ("nb.imatrix.gguf", "https://example.org/home/b", "a/b"):
        path = tiny_model.write(
            tmp_path / "m.gguf", extra=lambda w, v=value: w.add_string("quantize.imatrix.file", v)
        )
        files.check_metadata(path)


def test_what_cannot_be_published(made, session, tmp_path):
    with pytest.raises(UsageError) as caught:
        files.collect(tmp_path, REPO, [], False, False, session)
    assert "imatrix-lab card" in caught.value.fix
    for path in (made[0] / "quants").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadRecords):
        files.collect(tmp_path, REPO, [_other_records(made, tmp_path)], False, False, session)
    (tmp_path / CARD).write_text("my own words")
    assert files.collect(tmp_path, REPO, [], False, False, session).card() == "my own words"
    with (tmp_path / Q4).open("ab") as file:
        file.write(b"more")
    with pytest.raises(UsageError, match="manifest"):
        files.collect(tmp_path, REPO, [], False, False, session)


def test_what_a_publisher_is_told(made, session):
    notes = collect(made, session, records=[]).notes
    [scores] = [n for n in notes if "score run" in n]
    assert scores.endswith("--text et") and Q4 in scores and Q8 in scores
    assert any("--model hf:" in n for n in notes)  # the original is a file here
    assert not any("score run" in n for n in collect(made, session).notes)


def _other_records(made, folder):
    """Return the record of the standard mix alone."""
    [path] = [p for p in (made[0] / "scores").glob("*.parquet") if "tiny-Q4" in p.name]
    target = folder / "other.parquet"
    target.write_bytes(path.read_bytes())
    return target


def test_published_downloaded_and_run(made, upload_hub, session, tools):
    folder, env = made
    env = {**env, "HF_ENDPOINT": upload_hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    words = ["publish", folder / "quants", "--to", REPO, "--scores", folder / "scores"]
    shown = lab(env, *words, "--dry-run")
    assert Q4 in shown.stdout and "new" in shown.stdout and not upload_hub.history
    page = (folder / "quants" / "card.html").read_text()
    assert "<table>" in page and "data:image/svg+xml;base64," in page
    run = lab(env, *words)
    assert run.stdout.strip().endswith(f"{REPO}/tree/v1")
    assert TOKEN not in run.stdout + run.stderr + shown.stdout + shown.stderr
    published = upload_hub.files(REPO)
    assert published[Q4] == (folder / "quants" / Q4).read_bytes()
    assert b"quantized_by: user" in published[CARD] and "card.html" not in published
    model = resolve.resolve(f"hf:{REPO}:Q8_0", session, tools)
    assert model.sha256 == sha256_file(folder / "quants" / Q8)
    with server.serve(tools, model.path, 1, 64, threads=1) as client:
        [answer] = client.generate([GenerateItem("1", (("", "en to"),), 4)])
    assert not answer.error and answer.n_tokens == 4


def test_killed_at_random_moments(made, upload_hub):
    """The whole command, by SIGKILL; what is published is never half of it."""
    folder, env = made
    env = {**env, "HF_ENDPOINT": upload_hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    words = ["publish", str(folder / "quants"), "--to", REPO, "--scores", str(folder / "scores")]
    code = "import sys; from imatrix_lab.cli.main import main; main()"
    rng = random.Random(7)
    for limit in (*(rng.randrange(2000) for _ in range(2)), None):
        if limit is not None:
            upload_hub.cut_after(limit)
        run = subprocess.Popen([sys.executable, "-c", code, *words], env=env)
        upload_hub.on_cut = lambda run=run: os.kill(run.pid, signal.SIGKILL)
        status = run.wait()
        assert status in (0, -signal.SIGKILL)
        upload_hub.mend()
        there = upload_hub.files(REPO)
        assert CARD not in there or {Q4, Q8, "results.json"} <= there.keys()
    assert status == 0 and upload_hub.tags[REPO] == {"v1": upload_hub.commit(REPO)}
    assert upload_hub.files(REPO)[Q4] == (folder / "quants" / Q4).read_bytes()


def test_a_card_for_files_of_others(made, session, tmp_path):
    folder, _ = made
    quants = [str(folder / "quants" / Q4), str(folder / "plain" / "tiny-Q4_K_M.gguf")]
    out = tmp_path / "card"
    written = others.write(quants, [folder / "scores"], "", out, session, False)
    assert {p.name for p in written} == {CARD, "results.json", "kld-by-size.svg"}
    card = (out / CARD).read_text()
    assert "tiny-Q4_K_M.gguf" in card and "left out: nothing" not in card
    [row] = [line for line in card.splitlines() if line.startswith(f"| {Q4} | et | ")]
    assert "no imatrix Q4_K_M" in row
    assert others.write(quants, [folder / "scores"], "", out, session, False) == written
    with pytest.raises(UsageError):
        others.write(quants, [], "", out, session, False)
    others.write(quants, [], "", out, session, True)
    assert "has not been scored" in (out / CARD).read_text()


def test_a_card_for_originals_whole_and_split(tools, tiny, session, tmp_path):
    argv = [tools.program("llama-gguf-split"), "--split-max-tensors", "8", tiny, tmp_path / "base"]
    subprocess.run([*map(str, argv)], check=True, capture_output=True)
    first, *more = sorted(tmp_path.glob("base-*.gguf"))
    for model in (tiny, first):
        others.write([str(model)], [], "user/tiny", tmp_path / model.stem, session, False)
        card = (tmp_path / model.stem / CARD).read_text()
        assert "not quantized (F16)" in card and "without an importance matrix" not in card
        assert f"| {first.name} and {len(more)} more parts |" in card or model == tiny
    assert len(more) > 1 and f"--hf-file {first.name}" in card
    with pytest.raises(UsageError, match="foo"):
        others.write([str(tiny)], [], "foo", tmp_path / "new", session, False)
    assert not (tmp_path / "new").exists()


def test_the_diff_says_what_is_there(made, session, upload_hub):
    collected = collect(made, session)
    upload.upload(REPO, collected.items[1:], False, False, Silent())
    states = upload.diff(REPO, collected.items).states()
    assert states.pop(collected.items[0].name) == "new"
    assert set(states.values()) == {"there already"}
