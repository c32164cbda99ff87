"""show, check, merge and diff as a user types them; what quant does with a file that fails."""

import dataclasses
import json
import re
import shlex
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from imatrix_lab.cli import main as cli_main
from imatrix_lab.cli.imatrix import MERGE_BY
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.imatrix import format, merge
from imatrix_lab.imatrix.format import Entry
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.types import ComputeOptions, Request
from tests.fakes.hub_server import HubServer

QUERY = "blk.0.attn_q.weight"


@pytest.fixture
def lab(capsys):
    """A function: words -> what the command printed, in this process, which has its own cache."""

    def run(*words, status=0):
        capsys.readouterr()
        exit_status = cli_main.run([str(w) for w in words])
        out, err = capsys.readouterr()
        assert exit_status == status, err
        return SimpleNamespace(stdout=out, stderr=err)

    return run


@pytest.fixture(scope="module")
def two(tools, tiny, own_text, store_at, tmp_path_factory):
    """Texts nb.txt and en.txt, and nb.gguf and en.gguf made of them."""
    folder = tmp_path_factory.mktemp("two")
    for name, n_tokens in (("nb", 6 * 128), ("en", 4 * 128)):
        text = own_text(n_tokens).rename(folder / f"{name}.txt")
        compute = ComputeOptions("cpu", n_ctx=128, threads=1)
        request = Request(str(text), (), str(tiny), 10**6, folder, compute)
        tune.imatrix(
            request, folder / f"{name}.gguf", Session(store_at(folder / "store"), Silent())
        )
    return folder


def spoilt(source, target, value):
    imatrix = format.read(source)
    sums = imatrix.entries[QUERY].sums.copy()
    sums[:, 0] = value
    entries = {**imatrix.entries, QUERY: Entry(sums, imatrix.entries[QUERY].counts)}
    format.write(target, dataclasses.replace(imatrix, entries=entries))
    return target


def test_show(lab, two):
    done = lab("imatrix", "show", two / "nb.gguf")
    assert "768 in 6 windows of 128" in done.stdout and "ffn_down" in done.stdout
    assert "warning: only 768 tokens" in done.stdout
    (facts,) = json.loads(lab("imatrix", "show", two / "nb.gguf", "--json").stdout)
    assert facts["language"] == "nb" and len(facts["tensors"]) == 14
    assert facts["findings"][0]["kind"] == "few-tokens"


def test_check_and_its_status(lab, two, tiny, tmp_path):
    assert "error" not in lab("imatrix", "check", two / "nb.gguf", "--model", tiny).stdout
    bad = spoilt(two / "nb.gguf", tmp_path / "bad.gguf", np.nan)
    done = lab("imatrix", "check", bad, "--model", tiny, status=1)
    assert "error: " in done.stdout and QUERY in done.stdout
    assert "effect:" in done.stdout and "fix:" in done.stdout
    done = lab("imatrix", "check", bad, "--model", tiny, "--repair", tmp_path / "r", status=1)
    assert QUERY in done.stderr and not (tmp_path / "r").exists()


def test_check_repairs_what_can_be(lab, two, tiny, tmp_path):
    imatrix = format.read(two / "nb.gguf")
    entries = {**imatrix.entries, "blk.9.attn_q.weight": imatrix.entries[QUERY]}
    format.write(tmp_path / "more.gguf", dataclasses.replace(imatrix, entries=entries))
    target = ("--repair", tmp_path / "fixed.gguf")
    done = lab("imatrix", "check", tmp_path / "more.gguf", "--model", tiny, *target, "--json")
    assert json.loads(done.stdout)["repaired"] == ["left out 1 tensors not in the model"]
    back = format.read(tmp_path / "fixed.gguf")
    assert back.entries.keys() == imatrix.entries.keys() and back.metadata[format.REPAIRED]


def test_check_mends_what_a_sibling_knows(lab, two, tiny, tmp_path, monkeypatch):
    """As ik_llama.cpp records gate and up; the command that is printed does it."""
    monkeypatch.chdir(tmp_path)
    imatrix = format.read(two / "nb.gguf")
    entries = {n: e for n, e in imatrix.entries.items() if "ffn_gate" not in n}
    format.write(tmp_path / "fused.dat", dataclasses.replace(imatrix, entries=entries))
    done = lab("imatrix", "check", tmp_path / "fused.dat", "--model", tiny, status=1)
    command = shlex.split(done.stderr.partition("to repair: imatrix-lab ")[2].splitlines()[0])
    lab(*command)
    repaired = tmp_path / command[-1]
    assert format.read(repaired).entries.keys() == imatrix.entries.keys()
    mended = tmp_path / "mended.gguf"
    lab("imatrix", "check", tmp_path / "fused.dat", "--model", tiny, "--repair", mended)
    assert format.read(mended).entries.keys() == imatrix.entries.keys()
    assert "error" not in lab("imatrix", "check", mended, "--model", tiny).stdout


def test_merge_offers_every_way_of_merging():
    assert MERGE_BY == merge.BY


def test_merge_with_weights_to_both_formats(lab, two, tmp_path):
    parts = (f"{two / 'nb.gguf'}=0.75", f"{two / 'en.gguf'}=0.25")
    for name in ("mix.gguf", "mix.dat"):
        done = lab("imatrix", "merge", *parts, "-o", tmp_path / name)
        assert done.stdout.strip() == str(tmp_path / name)
    mix, dat = format.read(tmp_path / "mix.gguf"), format.read(tmp_path / "mix.dat")
    assert mix.language == "nb75-en25" and dat.legacy
    expected = merge.merge(
        [merge.MergeInput(two / f"{n}.gguf", format.read(two / f"{n}.gguf"), w)
         for n, w in (("nb", 0.75), ("en", 0.25))], "energy",
    )  # fmt: skip
    for name, e in expected.entries.items():
        assert np.array_equal(mix.entries[name].sums, e.sums)
        np.testing.assert_allclose(dat.entries[name].means(), e.means(), rtol=1e-6)


def test_merge_leaving_each_out(lab, two, tmp_path):
    third = tmp_path / "ml.gguf"
    format.write(third, dataclasses.replace(format.read(two / "en.gguf"), language="ml"))
    paths = (two / "nb.gguf", two / "en.gguf", third)
    lab("imatrix", "merge", *paths, "-o", tmp_path / "m.gguf", "--by", "tokens", "--leave-one-out")
    made = {p.name for p in tmp_path.glob("m*.gguf")} - {"ml.gguf"}
    assert made == {"m.gguf", *(f"m-without-{n}.gguf" for n in ("nb", "en", "ml"))}
    assert format.read(tmp_path / "m-without-en.gguf").n_tokens() == (6 + 4) * 128


def test_merge_leaving_each_out_of_files_called_alike(lab, two, tmp_path):
    paths = [tmp_path / folder / "imatrix.gguf" for folder in "abc"]
    for path, source in zip(paths, ("nb", "en", "nb"), strict=True):
        path.parent.mkdir()
        path.write_bytes((two / f"{source}.gguf").read_bytes())
    lab("imatrix", "merge", *paths, "-o", tmp_path / "m.gguf", "--leave-one-out")
    made = {p.name for p in tmp_path.glob("m-*.gguf")}
    assert made == {f"m-without-imatrix-{i}.gguf" for i in (1, 2, 3)}
    # too few files: refused before anything is written
    words = ("imatrix", "merge", *paths[:2], "-o", tmp_path / "x.gguf", "--leave-one-out")
    assert lab(*words, status=2).stderr and not (tmp_path / "x.gguf").exists()


def test_short_names_of_the_files_here(lab, two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-nb.imatrix.gguf").symlink_to(two / "nb.gguf")
    (tmp_path / "en.gguf").symlink_to(two / "en.gguf")
    lab("imatrix", "merge", "nb=0.75", "en=0.25", "-o", "mix.gguf")
    assert format.read(tmp_path / "mix.gguf").language == "nb75-en25"
    (tmp_path / "nb.gguf").symlink_to(two / "nb.gguf")
    done = lab("imatrix", "merge", "nb=0.75", "en=0.25", "-o", "x.gguf", status=2)
    assert "demo-nb.imatrix.gguf=0.5" in done.stderr and "nb.gguf" in done.stderr


def test_imatrices_of_the_hub_wherever_one_is_taken(lab, two, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    repo = {"m.imatrix.gguf": two / "nb.gguf", "sub/en.imatrix": two / "en.gguf"}
    with HubServer({"org/x-imatrix": {"main": repo}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        nb, en = "hf:org/x-imatrix/m.imatrix.gguf", "hf:org/x-imatrix@main:sub/en.imatrix"
        assert "6 windows" in lab("imatrix", "show", nb).stdout
        lab("imatrix", "check", en, "--model", tiny)
        lab("imatrix", "diff", nb, f"{server.endpoint}/org/x-imatrix/blob/main/sub/en.imatrix")
        lab("imatrix", "merge", f"{nb}=0.5", f"{en}=0.5", "-o", tmp_path / "m.gguf")
        words = ("--type", "Q4_K_M", "--out", tmp_path / "q", "--heldout", two / "nb.txt")
        lab("quantize", "--model", tiny, "--imatrix", nb, *words)
        assert (
            "no file matches" in lab("imatrix", "show", "hf:org/x-imatrix/y.dat", status=2).stderr
        )
        n_downloads = sum(r.path.startswith("/cdn/") for r in server.requests)
    assert format.read(tmp_path / "m.gguf").n_tokens() == (6 + 4) * 128
    assert n_downloads == 1  # each file once; the other is not in LFS


def test_files_of_two_models_are_said_to_be(lab, two, tmp_path):
    other = format.read(two / "en.gguf")
    metadata = {**other.metadata, format.MODEL: "f" * 64}
    format.write(tmp_path / "en.gguf", dataclasses.replace(other, metadata=metadata))
    for words in (("merge", "-o", tmp_path / "x.gguf"), ("diff",)):
        for en, differs in ((two / "en.gguf", False), (tmp_path / "en.gguf", True)):
            done = lab("imatrix", words[0], two / "nb.gguf", en, *words[1:])
            assert ("f" * 12 in done.stderr) == differs


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("nb=0.75", "imatrix-lab imatrix build --model MODEL --corpus nb --out nb.gguf"),
        ("nb", "imatrix-lab imatrix build --model MODEL --corpus nb --out nb.gguf"),
        ("nb=much", "much"),
    ],
)
def test_what_is_no_file_gets_the_command_that_makes_one(lab, tmp_path, monkeypatch, word, words):
    monkeypatch.chdir(tmp_path)
    done = lab("imatrix", "merge", word, "-o", "x.gguf", status=2)
    assert words in done.stderr


def test_a_merge_replaces_mixtures_of_the_same_files_alone(lab, two, tmp_path):
    nb, en = two / "nb.gguf", two / "en.gguf"
    for name in ("mix.gguf", "mix.dat"):
        out = tmp_path / name
        for _ in range(2):
            lab("imatrix", "merge", nb, en, "-o", out)
        before = out.read_bytes()
        lab("imatrix", "merge", f"{nb}=3", en, "-o", out, status=2)
        assert out.read_bytes() == before
        done = lab("imatrix", "merge", f"{nb}=3", en, "-o", out, "--force")
        assert str(out) in done.stderr.splitlines()[0] and out.read_bytes() != before
    before = nb.read_bytes()
    (tmp_path / "link.gguf").symlink_to(nb)
    (tmp_path / "twin.gguf").hardlink_to(nb)
    for out in (nb, tmp_path / "link.gguf", tmp_path / "twin.gguf"):
        lab("imatrix", "merge", nb, en, "-o", out, "--force", status=2)
        lab("imatrix", "merge", nb, en, "-o", out, status=2)
    assert nb.read_bytes() == before
    lab("imatrix", "merge", nb, en, "-o", tmp_path / "new" / "mix.gguf")
    # each mixture that lacks one file is looked at too, before any is written
    (tmp_path / "a-without-en.gguf").write_text("mine")
    files = (nb, en, tmp_path / "mix.gguf")
    lab("imatrix", "merge", *files, "--leave-one-out", "-o", tmp_path / "a.gguf", status=2)
    assert not (tmp_path / "a.gguf").exists()


def test_an_imatrix_replaces_one_of_the_same_model_and_text_alone(
    lab, two, tiny, tools, link_toolchain, tmp_path, monkeypatch
):
    link_toolchain(tmp_path / "store")
    monkeypatch.setenv("IMATRIX_LAB_CACHE", str(tmp_path / "store"))
    out, model = tmp_path / "x.gguf", tmp_path / "model-f16.gguf"
    model.write_bytes(tiny.read_bytes())
    words = ("imatrix", "build", "--model", model, "--ctx", 128, "--threads", 1, "--out", out)
    for _ in range(2):
        lab(*words, "--corpus", two / "nb.txt", "--tokens", 512)
    before = out.read_bytes()
    lab(*words, "--corpus", two / "nb.txt", "--tokens", 384, status=2)
    done = lab(*words, "--corpus", two / "en.txt", "--tokens", 512, status=2)
    assert str(out) in done.stderr and "--force" in done.stderr
    assert out.read_bytes() == before
    done = lab(*words, "--corpus", two / "en.txt", "--tokens", 512, "--force")
    assert f"{out} will be replaced" in done.stderr and out.read_bytes() != before
    lab(*words[:-1], model, "--corpus", two / "en.txt", "--force", status=2)
    assert model.read_bytes() == tiny.read_bytes()


def test_diff(lab, two, tmp_path, monkeypatch):
    files = (two / "nb.gguf", two / "en.gguf")
    picture = tmp_path / "p.svg"
    done = lab("imatrix", "diff", *files, "--noise", *files, "--plot", picture)
    assert "ffn_down" in done.stdout and ", 1.0 times" in done.stdout
    assert picture.read_text().startswith("<?xml")
    result = json.loads(lab("imatrix", "diff", *files, files[0], "--json").stdout)
    assert np.array(result["matrix"]["tv"]).shape == (3, 3)
    assert len(result["by_tensor"]["names"]) == 14
    assert lab("imatrix", "diff", files[0], status=2).stderr
    monkeypatch.chdir(tmp_path)
    done = lab("imatrix", "diff", *files, "--noise", *files, "--json", "--plot")
    assert (tmp_path / "diff.svg").exists()
    result = json.loads(done.stdout)["by_tensor"]
    assert result["noise"]["tv"] == result["noise_highest_tv"] and len(result["names"]) == 14


def quantize(lab, tiny, imatrix, two, out, *extra, status=0):
    return lab(
        "quantize", "--model", tiny, "--imatrix", imatrix, "--type", "Q4_K_M", "--threads", 1,
        "--heldout", two / "en.txt", "--out", out, *extra, status=status,
    )  # fmt: skip


def test_a_file_that_fails_reaches_llama_quantize_only_by_force(lab, tiny, two, tmp_path):
    bad = spoilt(two / "nb.gguf", tmp_path / "nb.gguf", -1)
    done = quantize(lab, tiny, bad, two, tmp_path / "out", status=1)
    assert QUERY in done.stderr
    assert f"imatrix-lab imatrix check {bad}" in done.stderr and not (tmp_path / "out").exists()
    done = quantize(lab, tiny, bad, two, tmp_path / "out", "--force")
    assert "WARNING" in done.stderr and "--force" in done.stderr
    (quant,) = (tmp_path / "out").glob("*Q4_K_M.gguf")
    assert "negative values" in read_header(quant).metadata["imatrix_lab.imatrix.forced"]
    entries = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    assert "negative values" in entries[quant.name]["forced"]
    assert "--force" in entries[quant.name]["command"]
    assert "failed its check" in (tmp_path / "out" / "README.md").read_text()


def test_a_dat_makes_the_same_weights_as_its_gguf(lab, tiny, two, tmp_path):
    format.write(tmp_path / "nb.dat", format.read(two / "nb.gguf"))
    format.write(tmp_path / "same.gguf", format.read(tmp_path / "nb.dat"))
    tensors = []
    for name in ("nb.dat", "same.gguf"):
        quantize(lab, tiny, tmp_path / name, two, tmp_path / name.partition(".")[0])
        (quant,) = (tmp_path / name.partition(".")[0]).glob("*.gguf")
        tensors.append([np.array(t.data) for t in gguf.GGUFReader(quant).tensors])
    assert all(np.array_equal(a, b) for a, b in zip(*tensors, strict=True))
    metadata = read_header(quant).metadata
    assert metadata["imatrix_lab.label"] == "same" and "imatrix_lab.language" not in metadata
    (dat,) = (tmp_path / "nb").glob("*.gguf")
    assert "imatrix_lab.imatrix.tokens" not in read_header(dat).metadata  # a .dat does not say


def test_a_mixture_names_the_quant(lab, tiny, two, tmp_path):
    parts = (f"{two / 'nb.gguf'}=0.75", f"{two / 'en.gguf'}=0.25")
    lab("imatrix", "merge", *parts, "-o", tmp_path / "mix.gguf")
    quantize(lab, tiny, tmp_path / "mix.gguf", two, tmp_path / "out")
    (quant,) = (tmp_path / "out").glob("*.gguf")
    assert quant.name == "tiny-nb75-en25-Q4_K_M.gguf"
    assert read_header(quant).metadata["imatrix_lab.language"] == "nb75-en25"


def test_a_file_that_is_calibrated_and_verified_on_is_no_language(lab, tiny, two, tmp_path):
    """The text is told by its sha256, also in a mixture; its name is no language."""
    rows = (two / "nb.txt").read_text(encoding="utf-8").strip().split("\n\n")
    text, other = tmp_path / "nb-utf8.jsonl", tmp_path / "other.txt"
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    other.write_text((two / "en.txt").read_text(encoding="utf-8"))
    lab("imatrix", "build", "--model", tiny, "--corpus", text, "--ctx", 128, "--threads", 1,
        "--out", tmp_path / "b.gguf", "--backend", "cpu")  # fmt: skip
    lab("imatrix", "merge", tmp_path / "b.gguf", two / "en.gguf", "-o", tmp_path / "mix.gguf")
    for name, heldout, is_same in (("b", text, True), ("b", other, False), ("mix", text, True)):
        out = tmp_path / f"{name}-{is_same}"
        done = lab(
            "quantize", "--model", tiny, "--imatrix", tmp_path / f"{name}.gguf", "--heldout",
            heldout, "--type", "Q4_K_M", "--threads", 1, "--out", out,
        )  # fmt: skip
        card = (out / "README.md").read_text(encoding="utf-8")
        (entry,) = json.loads((out / "manifest.json").read_text())["files"].values()
        assert ("WARNING" in done.stderr) is ("from which the imatrix was computed" in card)
        assert ("WARNING" in done.stderr) is entry["heldout_is_calibration"] is is_same
        made = card.partition("## What the imatrix was made of")[2]
        assert "nb-utf8.jsonl" in made.partition("##")[0]
        assert "same text is not recorded" not in card
        assert entry["language"] == "" and "For people who use" not in card
        (quant,) = out.glob("*.gguf")
        metadata = read_header(quant).metadata
        assert (
            "imatrix_lab.language" not in metadata and metadata["imatrix_lab.label"] in quant.name
        )
        if name == "b":
            corpus_sha256 = format.read(tmp_path / "b.gguf").metadata["imatrix_lab.corpus.sha256"]
            assert entry["corpus_sha256"] == corpus_sha256
            shown = json.loads(lab("imatrix", "show", tmp_path / "b.gguf", "--json").stdout)
            assert shown[0]["language"] == ""


def test_a_text_in_rows_is_the_text_in_plain(lab, tiny, two, tmp_path):
    """Calibrated and verified on the texts in a file, not on its syntax."""
    paragraphs = (two / "nb.txt").read_text(encoding="utf-8").strip().split("\n\n")
    rows = tmp_path / "nb.txt"  # by content
    rows.write_text("".join(json.dumps({"tekst": text}) + "\n" for text in paragraphs))
    build = ("imatrix", "build", "--model", tiny, "--ctx", 128, "--threads", 1, "--backend", "cpu")
    shas = []
    for text in (rows, two / "nb.txt"):
        out = tmp_path / f"{len(shas)}.gguf"
        lab(*build, "--corpus", text, "--out", out)
        shas.append(format.read(out).metadata["imatrix_lab.corpus.sha256"])
    assert shas[0] == shas[1]
    failed = lab(*build, "--corpus", rows, "--field", "text", "--out", out, status=1)
    assert "--field tekst" in failed.stderr
    verified = [
        lab("quantize", "--model", tiny, "--imatrix", out, "--type", "Q4_K_M", "--threads", 1,
            "--heldout", text, "--out", tmp_path / f"quants-{i}", "--json").stdout
        for i, text in enumerate((rows, two / "nb.txt"))
    ]  # fmt: skip
    values = [json.loads(result)["quants"][0]["perplexity"] for result in verified]
    assert values[0] == values[1]


def test_the_remedies_for_a_bad_imatrix_name_files_that_are_there(
    lab, two, tiny, tmp_path, monkeypatch
):
    """From another folder, with blanks in both names."""
    model = tmp_path / "a model-f16.gguf"
    model.symlink_to(tiny)
    bad = spoilt(two / "nb.gguf", tmp_path / "bad one.gguf", np.nan)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = ("--type", "Q4_K_M", "--heldout", two / "nb.txt")
    done = lab("quantize", "--model", model, "--imatrix", bad, *text, status=1)
    check, build = re.findall(r"imatrix-lab (imatrix .+?)(?:; or|$)", done.stderr, re.MULTILINE)
    again = lab(*shlex.split(check), status=1)
    assert QUERY in again.stdout and "no such file" not in again.stderr
    small = ("--ctx", "128", "--threads", "1")
    lab(*shlex.split(build.replace("LANGUAGE", shlex.quote(str(two / "nb.txt")))), *small)
    merged = lab("imatrix", "merge", bad, two / "en.gguf", "-o", "m.gguf", status=1)
    shown = re.search(r"imatrix-lab (imatrix show .+)", merged.stderr)
    assert shown and "NaN" in lab(*shlex.split(shown[1])).stdout
