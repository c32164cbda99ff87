"""Recipes: what is read, what is refused, what is reduced."""

import re
import runpy
from pathlib import Path

import pytest

from imatrix_lab.errors import UsageError
from imatrix_lab.study import recipe, validate
from imatrix_lab.study.recipe import Recipe, Task

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.toml"))
HEAD = 'schema = 1\nname = "x"\ntypes = ["q4_k", "Q3_K_S"]\n'
TABLES = '[calibration]\ntexts = ["en", "nb"]\n[evaluation]\ntexts = ["en", "norwegian bokmål"]\n'


@pytest.fixture
def write(tmp_path: Path):
    """A function: TOML -> its file."""
    path = tmp_path / "study" / "x.toml"
    path.parent.mkdir()

    def one(text: str) -> Path:
        path.write_text(text)
        return path

    return one


def test_defaults_and_names(write) -> None:
    loaded = recipe.load(write(HEAD + TABLES))
    assert loaded == Recipe(
        schema=1, name="x", types=("Q4_K_M", "Q3_K_S"),
        calibration=recipe.CalibrationSettings(("en", "nb")),
        evaluation=recipe.Evaluation(("en", "nb")),
    )  # fmt: skip
    assert loaded.models == ("demo",) and not loaded.is_reduced


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("schema = 1", "schema = 2", "schema is 2"),
        ("schema = 1\n", "", "schema is None"),
        ('"q4_k"', '"Q4_K_X"', "types: .*'Q4_K_X'; 'Q4_K_S'?"),
        ('"q4_k"', '"size:Q4_K_X"', "types: 'size:Q4_K_X' is not a size"),
        ('"q4_k"', '"bits:four"', "types: 'fourbpw' is not a size"),
        ('name = "x"', 'name = "x"\nquantizers = []', "quantizers must not be empty"),
        ('["q4_k", "Q3_K_S"]', "[]", "types"),
        ('["q4_k", "Q3_K_S"]', '["q4_k", "q4_k"]', "types: 'q4_k'"),
        ('name = "x"', 'name = "../x"', "name: '../x'"),
        ('name = "x"', 'nmae = "x"', "unknown key 'nmae'; 'name'?"),
        ('name = "x"', 'name = "x"\nmodels = []', "models"),
        ('name = "x"', 'name = "x"\nkeep = "score"', "keep .* 'score'; 'scores'"),
        ('name = "x"', 'name = "x"\nseed = -1', "seed = -1 "),
        ('texts = ["en", "nb"]', "texts = []", "calibration.texts"),
        ('texts = ["en", "nb"]', 'texts = ["en", " "]', "calibration.texts"),
        ("[evaluation]", "samples = 0\n[evaluation]", "samples = 0 .* 1"),
        ("[evaluation]", "samples = 1000\n[evaluation]", "samples = 1000 .* 100"),
        ("[evaluation]", "tokens = 1000\n[evaluation]", "tokens = 1000 .* 1,024"),
        ("[evaluation]", "tokns = 1\n[evaluation]", r"unknown key 'tokns' in \[calibration\]"),
        ("bokmål", "bokml", "'norwegian bokml'"),
        ('"norwegian bokmål"', '"no"', None),
        ('"norwegian bokmål"', '"en=a.txt"', "evaluation.texts: .*'en'"),
        ("[evaluation]", "[comparison]\nmargins = {kld_nats = 0}\n[evaluation]",
         "margins: kld_nats = 0.0"),
        ("[evaluation]", "[comparison]\nmargins = {kld_nats = nan}\n[evaluation]",
         "margins.kld_nats: nan"),
        ("[evaluation]", "[comparison]\nresamples = 1\n[evaluation]", "resamples = 1 "),
        ("[evaluation]", "[limits]\nmemory_gib = -1\n[evaluation]", "limits.memory_gib = -1.0"),
        ("[evaluation]", '[[tasks]]\nname = "xnli"\nlimit = -1\n[evaluation]', "limit of xnli ="),
        ('[evaluation]\ntexts = ["en", "norwegian bokmål"]', "", "evaluation.texts nor"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(write, old: str, new: str, message: str | None) -> None:
    path = write((HEAD + TABLES).replace(old, new, 1))
    if message is None:
        recipe.load(path)
        return
    with pytest.raises(UsageError, match=message):
        recipe.load(path)


def test_sizes_are_types(write) -> None:
    text = HEAD.replace('"q4_k"', '"size:q4_k", "size:3.5gib", "bits:4.5", "size:4.5bpw"') + TABLES
    types = ("size:Q4_K_M", "size:3.5GiB", "size:4.5bpw", "Q3_K_S")
    assert recipe.load(write(text)).types == types


def test_tasks_alone(write) -> None:
    text = HEAD + '[calibration]\ntexts = ["en"]\n[[tasks]]\nname = "xnli"\nlanguages = ["zh"]'
    assert recipe.load(write(text)).tasks == (Task("xnli", ("zh",)),)


REDUCED = """
[reduced]
types = ["Q2_K"]
tasks = []
[reduced.calibration]
tokens = 2048
[[tasks]]
name = "xnli"
"""


def test_reduced_is_laid_over_for_the_demo_model_only(write) -> None:
    loaded = recipe.load(write(HEAD + TABLES + REDUCED))
    assert loaded.is_reduced
    assert (loaded.types, loaded.tasks) == (("Q2_K",), ())
    assert loaded.calibration == recipe.CalibrationSettings(("en", "nb"), tokens=2048)
    whole = recipe.load(write('models = ["hf:a/b"]\n' + HEAD + TABLES + REDUCED))
    assert not whole.is_reduced
    assert (whole.types, whole.tasks) == (("Q4_K_M", "Q3_K_S"), (Task("xnli"),))
    assert whole.calibration.tokens == 65_536


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("tokens = 2048", "tokns = 2048", r"unknown key 'tokns' in \[reduced.calibration\]"),
        ("tokens = 2048", "tokens = 20", "tokens = 20 "),
        ('types = ["Q2_K"]', 'models = ["x.gguf"]', r"'models' .*\[reduced\]"),
    ],
)
def test_the_reduced_form_is_checked_even_where_it_is_not_used(write, old, new, message) -> None:
    for models in ("", 'models = ["hf:a/b"]\n'):
        with pytest.raises(UsageError, match=message):
            recipe.load(write(models + HEAD + TABLES + REDUCED.replace(old, new)))


def test_files_are_named_from_the_recipe(write, tmp_path, monkeypatch) -> None:
    text = HEAD.replace("x", "x", 1) + 'models = ["m.gguf", "demo", "hf:a/b:c.gguf"]\n'
    text += TABLES.replace('"en", "norwegian bokmål"', '"mine=t/a.jsonl", "nb"')
    text += '[[tasks]]\nname = "own.toml"\ndata = "/data/own"\n[[tasks]]\nname = "xnli"\n'
    path = write(text)
    monkeypatch.chdir(tmp_path)
    loaded = recipe.load(path)
    assert loaded.models == ("study/m.gguf", "demo", "hf:a/b:c.gguf")
    assert loaded.evaluation.texts == ("mine=study/t/a.jsonl", "nb")
    assert loaded.tasks[0].name == "study/own.toml" and loaded.tasks[1].name == "xnli"
    assert Path(loaded.tasks[0].data).resolve() == Path("/data/own")
    bare = recipe.without_folders(loaded)
    assert bare.models == ("m.gguf", "demo", "hf:a/b:c.gguf")
    assert bare.evaluation.texts == ("mine=a.jsonl", "nb")
    assert [(t.name, t.data) for t in bare.tasks] == [("own.toml", "own"), ("xnli", "")]
    monkeypatch.chdir(path.parent)
    assert recipe.load(Path("x.toml")).models[0] == "m.gguf"
    assert recipe.without_folders(recipe.load(Path("x.toml"))) == bare
    copy = tmp_path / "copy.toml"
    copy.write_bytes(path.read_bytes())
    assert recipe.load(copy, path.parent).models[0] == "m.gguf"


def test_hostile_files(write, tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="not valid TOML"):
        recipe.load(write("schema = = 1"))
    with pytest.raises(UsageError, match=r"reduced: .* is not a table"):
        recipe.load(write("reduced = 3\n" + HEAD + TABLES))
    with pytest.raises(UsageError, match=r"reduced\.calibration is not a table"):
        recipe.load(write(HEAD + TABLES + "[reduced]\ncalibration = 3"))


def test_the_reference_is_up_to_date_and_a_recipe() -> None:
    text = runpy.run_path(str(ROOT / "tools" / "recipe_reference.py"))["reference"]()
    path = ROOT / recipe.REFERENCE
    assert path.read_text() == text, "python tools/recipe_reference.py"
    loaded = recipe.load(path)
    assert loaded.is_reduced and loaded.calibration.tokens == 8192
    validate.check(loaded)


def test_a_recipe_by_name(write, tmp_path, monkeypatch) -> None:
    path = write(HEAD + TABLES)
    assert recipe.find(str(path)) == path
    monkeypatch.chdir(tmp_path)
    for word in ("quick-nb", "recipes/quick-nb.toml"):
        assert recipe.find(word).samefile(ROOT / "recipes" / "quick-nb.toml")
    for word in ("quick-nn", "elsewhere/quick-nb.toml"):
        with pytest.raises(UsageError, match=r"no recipe .*; 'quick-nb'"):
            recipe.find(word)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_run_on_the_demo_model_and_on_the_papers(path: Path, tmp_path) -> None:
    demo = recipe.load(path)
    assert (demo.name, demo.models) == (path.stem, ("demo",))
    validate.check(demo)
    text = path.read_text()
    paper = re.findall(r"^# (models = .*)$", text, re.MULTILINE)
    if not demo.source:
        assert not paper
        return
    assert demo.is_reduced and demo.unknown
    changed = tmp_path / path.name
    changed.write_text(text.replace('\nmodels = ["demo"]\n', f"\n{paper[0]}\n"))
    whole = recipe.load(changed)
    assert not whole.is_reduced and all(m.startswith("hf:") for m in whole.models)
    validate.check(whole)
    assert whole.calibration.tokens > demo.calibration.tokens
    assert {t.name for t in demo.tasks} <= {t.name for t in whole.tasks}


def test_the_papers_are_all_there() -> None:
    assert {p.stem for p in SHIPPED} == {
        "quick-nb", "best-file-nb", "borgersen-goodwin-2025", "calibrating-beyond-english",
        "cohere-2024",
    }  # fmt: skip
