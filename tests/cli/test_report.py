"""report on the command line."""

import dataclasses
import re

import pytest

from imatrix_lab.cli.main import run
from imatrix_lab.report import results
from tests.report import made_up


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "quick-nb"
    folder.mkdir()
    results.write(folder / results.FILE, made_up.study(("en", "nb"), ("Q3_K_S",), has_tasks=False))
    return folder


@pytest.mark.parametrize("given", ["folder", "file"])
def test_without_options_the_page_lies_beside_the_results(study, given, capsys):
    what = study if given == "folder" else study / results.FILE
    assert run(["report", str(what)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"report: {study / 'report.html'}\n")
    assert (study / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_each_form_where_it_is_wanted(study, tmp_path):
    names = {"--html": "a.html", "--md": "a.md", "--json": "a.json"}
    options = [w for option, name in names.items() for w in (option, str(tmp_path / name))]
    assert run(["report", str(study), *options]) == 0
    assert (tmp_path / "a.json").read_bytes() == (study / results.FILE).read_bytes()
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("# Is text in")
    assert not (study / "report.html").exists()


def test_a_report_replaces_reports_of_this_study_alone(study, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    of_another = dataclasses.replace(results.read(study), name="another", question="Is it so?")
    results.write(other / results.FILE, of_another)
    for option in ("--html", "--md", "--json"):
        path = tmp_path / f"report{option}"
        for _ in range(2):
            assert run(["report", str(study), option, str(path)]) == 0
        before = path.read_bytes()
        assert run(["report", str(other), option, str(path)]) == 2
        assert path.read_bytes() == before
        path.write_text("# Notes\n")
        assert run(["report", str(study), option, str(path)]) == 2
        assert path.read_text() == "# Notes\n"
        capsys.readouterr()
        assert run(["report", str(study), option, str(path), "--force"]) == 0
        assert str(path) in capsys.readouterr().err.splitlines()[0]
        assert path.read_bytes() == before


def test_the_results_are_not_replaced_by_what_is_made_of_them(study):
    file = study / results.FILE
    before = file.read_bytes()
    for option in ("--html", "--md", "--json"):
        assert run(["report", str(study), option, str(file), "--force"]) == 2
    assert file.read_bytes() == before


def test_no_study_there(tmp_path, capsys):
    assert run(["report", str(tmp_path)]) == 2
    assert "try: imatrix-lab study run" in capsys.readouterr().err


def test_another_file_is_not_resumed(tmp_path, capsys):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("schema = 1")
    assert run(["report", str(recipe)]) == 2
    assert "try: give a study's folder" in capsys.readouterr().err


def test_damaged_results(study, capsys):
    file = study / results.FILE
    file.write_bytes(file.read_bytes()[:1000])
    assert run(["report", str(study)]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (study / "report.html").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 1, "digest": 7}', "7"])
def test_results_that_are_nonsense(study, capsys, text):
    (study / results.FILE).write_text(text)
    assert run(["report", str(study)]) == 2
    assert "bug" not in capsys.readouterr().err


def test_a_changed_digit_is_no_other_result(study, capsys):
    file = study / results.FILE
    text = file.read_text()
    place = next(m.start() for m in re.finditer(r"(?<=0\.\d)\d", text))
    file.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    assert run(["report", str(study)]) == 2
    assert "not as it was written" in capsys.readouterr().err
