"""Whose a study's folder is."""

import pytest

from imatrix_lab.errors import UsageError
from imatrix_lab.study.folder import RECIPE, Folder

TEXT = """schema = 1
name = "x"
types = ["Q4_K_M"]
[calibration]
texts = ["nb", "en"]
[evaluation]
texts = ["mine=a.jsonl"]
"""


@pytest.fixture
def begin(tmp_path):
    """A function: TOML -> what the folder's copy is after a study of it began."""
    recipe, folder = tmp_path / "here" / "x.toml", Folder(tmp_path / "study")
    recipe.parent.mkdir()

    def one(text: str) -> str:
        recipe.write_text(text)
        folder.begin(recipe)
        return folder.of(RECIPE).read_text()

    one(TEXT)
    return one


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n" + TEXT,
        'keep = "scores"\n' + TEXT,
        TEXT + "[limits]\njobs = 1\n",
        TEXT + "[reduced.limits]\njobs = 1\n",
    ],
)
def test_what_changes_no_number_is_taken(begin, text: str) -> None:
    assert begin(text) == text


@pytest.mark.parametrize(
    "old, new, field",
    [
        ('"nb", "en"]', '"nb"]', "calibration.texts"),
        ("a.jsonl", "b.jsonl", "evaluation.texts"),
        ("schema = 1", "schema = 1\nseed = 2", "seed"),
    ],
)
def test_another_recipe_is_refused_by_what_differs(begin, old: str, new: str, field: str) -> None:
    with pytest.raises(UsageError, match=f"another recipe: {field} differs"):
        begin(TEXT.replace(old, new))


def test_a_folder_without_a_study_is_not_resumed(tmp_path) -> None:
    with pytest.raises(UsageError, match="there is no study here") as error:
        Folder(tmp_path).current_status()
    assert "study run" in error.value.fix


def test_what_a_run_killed_at_its_beginning_leaves_is_no_other_file(tmp_path) -> None:
    """It had begun to write the recipe."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(TEXT)
    folder = Folder(tmp_path / "study")
    folder.of("steps").mkdir(parents=True)
    folder.of(f".{RECIPE}.99999-1.tmp").write_text(TEXT[:9])
    folder.begin(recipe)
    assert folder.of(RECIPE).read_text() == TEXT
    folder.of(RECIPE).rename(tmp_path / "study" / "recipe.bak")
    with pytest.raises(UsageError, match="not an empty folder"):
        Folder(tmp_path / "study").check(recipe)
