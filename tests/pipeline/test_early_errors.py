"""What is wrong with a request is said before llama.cpp is built: with an empty store, at once.

Nor is a model hashed, which takes minutes for a large one.
"""

import json
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imatrix_lab.cli import main
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.outputs import Rules
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadImatrix, BadModel, BadText, UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.pipeline import deliver, plan, predict, score, tune
from imatrix_lab.publish import others
from imatrix_lab.study import context
from imatrix_lab.study.folder import Folder
from imatrix_lab.types import ComputeOptions, Request, ScoreRequest
from tests import tiny_model
from tests.imatrix.made_up import imatrix
from tests.models import headers
from tests.study import scored

CPU = ComputeOptions("cpu")
DAMAGED = b"GGUF" + bytes(20)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """An empty store, and a toolchain that must not be built."""

    def build(*_):
        raise AssertionError("llama.cpp would be built")

    def read(*_):
        raise AssertionError("a model would be hashed")

    monkeypatch.setattr("imatrix_lab.llamacpp.build._build", build)
    monkeypatch.setattr("imatrix_lab.core.digests.sha256_of", read)
    store = Store(tmp_path / "store")
    yield Session(store, Silent())
    assert not store.root.exists() or not list(store.artifacts())


@pytest.fixture
def files(tmp_path, tiny):
    """Requests that only lack what a test takes away, and paths of bad files."""
    (tmp_path / "damaged.gguf").write_bytes(DAMAGED)
    (tmp_path / "text.jsonl").write_text('{"id": "1", "text": "Hei."}\n')
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.fixture
def request_(files, tiny):
    return Request("nb", ("Q4_K_M",), str(tiny), 4096, files / "out", CPU)


def tuned(request, session):
    tune.tune(request, session)


def built(request, session):
    tune.imatrix(request, None, session)


def quantized(request, session):
    tune.quants(request, None, session)


@pytest.mark.parametrize("run", [tuned, built, quantized])
def test_the_model(run, request_, session, files):
    with pytest.raises(BadModel):
        run(replace(request_, model=str(files / "nope.gguf")), session)
    with pytest.raises(BadModel):
        run(replace(request_, model=str(files / "damaged.gguf")), session)
    with pytest.raises(UsageError) as caught:
        run(replace(request_, model="nope"), session)
    assert "--model demo" in caught.value.fix


@pytest.mark.parametrize("run", [tuned, built, quantized, plan.plan])
def test_the_text(run, request_, session):
    with pytest.raises(UsageError) as caught:
        run(replace(request_, text="klingon"), session)
    assert "klingon" in caught.value.what


@pytest.mark.parametrize("run", [tuned, quantized, plan.plan])
def test_the_output_folder(run, request_, session, files):
    with pytest.raises(UsageError) as caught:
        run(replace(request_, out=files / "file"), session)
    assert caught.value.where == str(files / "file") and "--out" in caught.value.fix
    (files / "own").mkdir()
    (files / "own" / "README.md").write_text("mine")
    with pytest.raises(UsageError):
        run(replace(request_, out=files / "own"), session)


def test_the_file_of_an_imatrix(request_, session, files):
    with pytest.raises(UsageError) as caught:
        tune.imatrix(request_, files, session)
    assert str(files) in caught.value.fix


@pytest.mark.parametrize("name", ["missing.gguf", "damaged.gguf"])
def test_the_imatrix(name, request_, session, files):
    with pytest.raises(BadImatrix):
        tune.quants(request_, files / name, session)
    with pytest.raises(BadImatrix):
        predict.predict_losses(prediction(request_.model, {"nb": files / name}), session)


def test_a_study_for_the_card(request_, session, files):
    with pytest.raises(UsageError):
        tune.tune(replace(request_, study=files), session)


def prediction(model, imatrices, quants=()):
    return predict.PredictRequest(model, tuple(imatrices.items()), ("Q4_K_M",), tuple(quants), CPU)


def test_models_of_a_prediction(session, files, tiny):
    imatrices = {"nb": files / "nb.gguf"}
    format.write(imatrices["nb"], imatrix(**{"blk.0.attn_q.weight": ([1.0] * 4, [1.0])}))
    with pytest.raises(BadModel):
        predict.predict_losses(prediction(str(files / "nope.gguf"), imatrices), session)
    with pytest.raises(BadModel):
        quants = [("nb", files / "damaged.gguf")]
        predict.predict_losses(prediction(str(tiny), imatrices, quants), session)


@pytest.fixture
def scoring(files, tiny):
    return ScoreRequest(
        str(tiny), (str(tiny),), (("nb", files / "text.jsonl"),), files / "scores", CPU
    )


def test_models_to_score(scoring, session, files):
    for bad in ("nope.gguf", "damaged.gguf"):
        with pytest.raises(BadModel):
            score.score(replace(scoring, reference=str(files / bad)), session)
        with pytest.raises(BadModel):
            score.score(replace(scoring, quants=(str(files / bad),)), session)


def test_texts_to_score(scoring, session, files):
    with pytest.raises(BadText) as caught:
        score.score(replace(scoring, texts=(("nb", files / "nope.txt"),)), session)
    assert "--text nb=FILE" in caught.value.fix
    with pytest.raises(UsageError):
        score.score(replace(scoring, texts=(("klingon", None),)), session)
    twice = (("nb", files / "text.jsonl"), ("nb", Path("other.txt")))
    with pytest.raises(UsageError):
        score.score(replace(scoring, texts=twice), session)


def test_the_folder_of_scores(scoring, session, files):
    with pytest.raises(UsageError) as caught:
        score.score(replace(scoring, out=files / "file"), session)
    assert caught.value.fix == "--out FOLDER"


@pytest.fixture
def there(files, session, tiny, quantized, monkeypatch):
    """A folder with a model, an already quantized one, an imatrix, and text."""
    monkeypatch.setenv("IMATRIX_LAB_CACHE", str(session.store.root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(files)
    (files / "model.gguf").symlink_to(tiny)
    (files / "q8.gguf").symlink_to(quantized(tiny, "Q8_0"))
    for name in ("a.gguf", "b.gguf"):
        format.write(files / name, imatrix(**{"blk.0.attn_q.weight": ([1.0] * 4, [1.0])}))
    headers.write(files / "tower.gguf", "clip")
    (files / "text.txt").write_text("Hei.")
    (files / "bad.toml").write_text('[[tasks]]\nname = "mixevals"\n')
    return {path: path.read_bytes() for path in files.iterdir() if path.is_file()}


WRONG = """
tune klingon
tune nb --type Q9_K
tune nb --model nope.gguf
tune nb --model q8.gguf
tune nb --model model.gguf --out text.txt
tune nb --model model.gguf --out text.txt/x
tune nb --model model.gguf --out /dev/null
tune nb --model model.gguf --study nope
tune nb --backend nope
tune nb --model model.gguf --tokens 400
tune nb --model model.gguf --size 3GB
tune nb --model model.gguf --size Q4_K_M --bits 20
tune nb --model model.gguf --bits 1
tune nb --model model.gguf --type F16 --feedback
tune nb --model model.gguf --type Q4_K_M --for nb
tune nb --model tower.gguf
quantize --model model.gguf --imatrix nope.gguf
quantize --model model.gguf --imatrix model.gguf
quantize --model model.gguf --imatrix none --heldout klingon
quantize --model model.gguf --imatrix none --heldout nb --type IQ1_S
quantize --model q8.gguf --imatrix none --heldout nb
quantize --model q8.gguf --imatrix a.gguf --heldout nb
corpus build klingon
corpus build nb --model nope.gguf
corpus build nb --model model.gguf --source nope
corpus build nb --model model.gguf --heldout nope
imatrix build --model model.gguf --corpus klingon
imatrix build --model model.gguf --corpus text.txt --out model.gguf
imatrix build --model model.gguf --corpus text.txt --out text.txt
imatrix build --model model.gguf --corpus text.txt --out text.txt --force
imatrix build --model model.gguf --corpus text.txt --out q8.gguf
imatrix build --model model.gguf --corpus text.txt --out file
imatrix build --model model.gguf --corpus text.txt --out .
imatrix build --model model.gguf --corpus nb --out /dev/full
imatrix build --model model.gguf --corpus nb --out /proc/x.gguf
imatrix build --model model.gguf --corpus text.txt --tokens 400
imatrix build --model model.gguf --corpus text.txt --tokens 1000 --ctx 1024
imatrix check a.gguf --model nope.gguf
imatrix check a.gguf --model model.gguf --repair a.gguf
imatrix check a.gguf --model model.gguf --repair model.gguf --force
imatrix check a.gguf --model model.gguf --repair text.txt
imatrix check nope.gguf --model model.gguf
imatrix merge a.gguf b.gguf -o a.gguf
imatrix merge a.gguf b.gguf -o B.GGUF --force
imatrix merge a.gguf b.gguf -o model.gguf
imatrix merge a.gguf b.gguf -o text.txt
imatrix merge a.gguf b.gguf -o /dev/null
imatrix diff a.gguf b.gguf --plot x.pdf
imatrix diff a.gguf b.gguf --plot text.txt
imatrix predict --model q8.gguf --imatrix a.gguf
score run --reference model.gguf --quant nope.gguf --text t=text.txt
score run --reference model.gguf --quant q8.gguf --text klingon
score run --reference model.gguf --quant q8.gguf --text t=text.txt --out q8.gguf
score run --reference model.gguf --quant q8.gguf --text t=text.txt --ctx 1000000
score run --reference model.gguf --quant q8.gguf --text t=text.txt --overlap 100000
task run mixevals
task run belebele --langs klingon --quant model.gguf
task run belebele --langs nb --quant nope.gguf
task run belebele --langs nb --quant model.gguf --out text.txt
task run belebele --langs nb --quant x --endpoint nowhere
task translate mixeval --to klingon --model model.gguf
task translate mixeval --from klingon --to nb --model model.gguf
task translate mixeval --to nb --model nope.gguf
task translate mixeval --to nb --model model.gguf --out text.txt
study run nope
study run bad.toml
study run quick-nb --out text.txt
report nope
card model.gguf --to foo
preference make --prompts nb --a model.gguf --b q8.gguf --out vote.pdf
preference make --prompts nb --a model.gguf --b q8.gguf --out vote
preference make --prompts nb.toml --a model.gguf --b q8.gguf --out vote.html
"""


DRY_RUNS = [
    f"{command} --dry-run"
    for command in WRONG.strip().splitlines()
    if command.startswith(("tune", "imatrix build", "study run"))
]


@pytest.mark.parametrize("command", [*WRONG.strip().splitlines(), *DRY_RUNS])
def test_every_command(command, there, session, capsys):
    began = time.process_time()
    status = main.run(shlex.split(command))
    err = capsys.readouterr().err
    assert status in (1, 2) and "rror: " in err, err
    assert time.process_time() - began < 2
    assert {path: path.read_bytes() for path in there} == there


NO_IMATRIX = {
    "quantize --model model.gguf --imatrix nb": "--corpus nb --out nb.gguf",
    "quantize --model model.gguf --imatrix model.gguf": "imatrix build --model",
    "imatrix show nb": "--corpus nb --out nb.gguf",
    "imatrix check nb --model model.gguf": "--corpus nb --out nb.gguf",
    "imatrix merge nb model.gguf -o mix.gguf": "--corpus nb --out nb.gguf",
    "imatrix merge model.gguf model.gguf -o mix.gguf": "imatrix build --model",
}


@pytest.mark.parametrize("command", NO_IMATRIX)
def test_what_is_no_imatrix_comes_with_what_makes_one(command, there, session, capsys):
    assert main.run(shlex.split(command)) in (1, 2)
    assert "imatrix-lab imatrix build --model" in (err := capsys.readouterr().err)
    assert NO_IMATRIX[command] in err and ("model" in err.partition("imatrix-lab")[0]) is (
        NO_IMATRIX[command] == "imatrix build --model"
    )


@pytest.mark.parametrize("command", ["show foo", "check foo --model model.gguf", "merge foo=2"])
def test_no_imatrix_is_built_of_what_is_no_language(command, there, session, capsys):
    assert main.run(["imatrix", *shlex.split(command), *["-o", "x"] * ("merge" in command)]) == 2
    err = capsys.readouterr().err
    assert "no file 'foo'" in err and "check the path" in err and "--corpus" not in err


@pytest.mark.parametrize(
    ("out", "page"), [(".", "vote.html"), ("/", "/vote.html"), ("x", "x.html")]
)
def test_where_a_page_can_be(out, page, there, session, capsys):
    make = "preference make --prompts nb --a model.gguf --b q8.gguf --out"
    assert main.run([*shlex.split(make), out]) == 2
    assert f"--out {page}\n" in capsys.readouterr().err


def test_what_to_do_about_a_changed_manifest_helps(request_, files, tiny):
    out, name = request_.out, "tiny-Q4_K_M.gguf"
    out.mkdir()
    (out / name).write_bytes(tiny.read_bytes())
    (out / deliver.CARD).write_text("a card")
    (out / MANIFEST).write_text(json.dumps({"files": {name: {"kind": "quant"}}, "digest": "0"}))
    with pytest.raises(UsageError) as raised:
        deliver.check_folder(out, Rules())
    assert "--force" in raised.value.fix and raised.value.where == str(out / MANIFEST)
    for file in (MANIFEST, deliver.CARD):
        assert file in f"{raised.value.where} {raised.value.fix}"
        (out / file).unlink()
    deliver.check_folder(out, Rules())
    deliver.check_files(request_, deliver.Names("tiny", ""), Rules(force=True))


def test_a_card_tells_files_by_their_names(tiny, session, tmp_path, monkeypatch):
    monkeypatch.setattr("imatrix_lab.core.digests.sha256_of", lambda path, _: sha256_file(path))
    same, other = tmp_path / "same" / tiny.name, tmp_path / "other" / tiny.name
    same.parent.mkdir()
    same.write_bytes(tiny.read_bytes())
    other.parent.mkdir()
    tiny_model.write(other, seed=1)
    out = tmp_path / "card"
    with pytest.raises(UsageError, match="name") as raised:
        others.write([str(tiny), str(other)], [], "", out, session, False)
    assert raised.value.where == str(other) and not out.exists()
    others.write([str(tiny), str(same)], [], "", out, session, False)


def test_prompts_that_are_not_there(there, session, capsys):
    make = "preference make --a model.gguf --b q8.gguf --out vote.html --prompts"
    for prompts, said in (("nb.toml", "no such file"), ("klingon", "no prompts for klingon")):
        assert main.run([*shlex.split(make), prompts]) == 2
        assert said in capsys.readouterr().err


def test_what_cannot_be_run_has_no_fallback(files, session, capsys, monkeypatch, tiny):
    monkeypatch.setenv("IMATRIX_LAB_CACHE", str(session.store.root))
    monkeypatch.setattr("imatrix_lab.core.digests.sha256_of", lambda *_: "")
    tower = headers.write(files / "tower.gguf", "clip")
    for model, has_fallback in ((tower, False), (tiny, True)):
        assert main.run(["model", "show", str(model)]) == 0
        out = capsys.readouterr().out
        assert ("fallback" in out) is has_fallback is not ("cannot be run" in out)


def test_the_model_of_a_study(session, files):
    study = scored.recipe(models=(str(files / "damaged.gguf"),))
    with pytest.raises(BadModel):
        context.prepare(study, Folder(files / "study"), session)


def test_a_model_that_llama_cpp_cannot_run(request_, scoring, session, files):
    tower = str(headers.write(files / "tower.gguf", "clip"))
    for run in (tuned, built, quantized):
        with pytest.raises(BadModel, match="vision tower"):
            run(replace(request_, model=tower), session)
    with pytest.raises(BadModel, match="vision tower"):
        score.score(replace(scoring, quants=(tower,)), session)
