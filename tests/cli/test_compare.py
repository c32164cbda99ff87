"""compare and power on the command line."""

import json

import pytest

from imatrix_lab.cli.main import run
from tests.compare.made_up import Text, items


@pytest.fixture
def two(tmp_path):
    text = Text("nb", n_documents=20, tokens=40)
    return [
        str(text.write(tmp_path / f"{c}.parquet", c, "Q4_K_M", e))
        for c, e in (("nb", 0.0), ("en", 0.3))
    ]


def test_compare_says_it_in_words_on_stdout(two, capsys):
    assert run(["compare", *two, "--margin", "0.001", "--resamples", "200"]) == 0
    out, err = capsys.readouterr()
    plain, formal, *_ = out.splitlines()
    assert "nb Q4_K_M is better than en Q4_K_M" in plain
    assert "sign-flip permutation" in formal
    rows = [line.split() for line in out.splitlines() if "kld_nats" in line]
    assert [row[-1] for row in rows] == ["better"]
    assert "threshold 0.05" in err


def test_compare_shows_the_exact_tests_of_items(tmp_path, capsys):
    answers = [("qa", "nb", str(i), f"g{i // 2}", float(i % 3 > 0)) for i in range(60)]
    flipped = [(*row[:4], 1.0 if i % 10 == 0 else row[4]) for i, row in enumerate(answers)]
    paths = [items(tmp_path / f"{c}.parquet", rows, c)
             for c, rows in (("nb", flipped), ("en", answers))]  # fmt: skip
    assert run(["compare", *map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert "McNemar" in out and "Newcombe 95 % CI" in out
    assert " 0.50 " in out  # McNemar of 2 to 0


def test_compare_as_json(two, capsys):
    assert run(["compare", *two, "--margin", "kld_nats=0.001", "--resamples", "200", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["comparisons"]
    assert (first["metric"], first["margin"], first["verdict"]) == ("kld_nats", 0.001, "better")
    assert (second["metric"], second["margin"]) == ("nll_nats", None)


def test_compare_a_grid(two, capsys):
    arguments = ["--family", "calib×lang×type", "--metric", "kld_nats", "--adjust", "max-t"]
    assert run(["compare", *two, *arguments, "--resamples", "200"]) == 0
    assert "better" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--margin", "much"],
        ["--margin", "-1"],
        ["--margin", "speed=1"],
        ["--family", "colour"],
        ["--family", "calib", "--baseline", "xx"],
    ],
)
def test_what_cannot_be_meant(two, arguments, capsys):
    assert run(["compare", *two, *arguments]) == 2
    assert "try:" in capsys.readouterr().err


def test_one_run_cannot_be_compared(two, capsys):
    assert run(["compare", two[0]]) == 2
    assert run(["compare", two[0], "nothing.parquet"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_power_of_a_benchmark(capsys):
    assert run(["power", "--task", "mixeval", "--margin", "1.5", "--langs", "en,nb"]) == 0
    out, err = capsys.readouterr()
    assert "interaction of two, 5 % of answers differ" in out
    assert "alpha = 0.05 / 3 comparisons (Bonferroni)" in err


def test_power_as_json(two, capsys):
    arguments = ["--pilot", two[0], "--pilot", two[1], "--margin", "0.002", "--rate", "100"]
    assert run(["power", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "kld_nats"
    assert found["rows"][0]["hours"] > 0


def test_power_that_is_none_is_said(capsys):
    few = ["--task", "mixeval", "--discordance", "2", "--clusters", "5"]
    assert run(["power", *few, "--margin", "1.5"]) == 0
    assert "none" in capsys.readouterr().out
    assert run(["power", "--task", "mixeval", "--margin", "3"]) == 0
    assert "2 % left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--task", "mixeval", "--langs", "xx"], "'xx'"),
        (["--task", "mixeval", "--people", "4"], "--people has no meaning"),
        (["--task", "mixeval", "--metric", "score"], "--metric has no meaning"),
        (["--task", "votes", "--metric", "score"], "--metric has no meaning"),
        (["--task", "votes", "--pilot", "A", "--pilot", "B"], "--pilot has no meaning"),
        (["--task", "votes", "--quants", "3"], "--quants has no meaning"),
        (["--pilot", "A", "--pilot", "B", "--icc", "0.5"], "--icc has no meaning"),
        (["--pilot", "A", "--pilot", "B", "--discordance", "5"], "--discordance has no meaning"),
        (["--task", "mixeval", "--task", "votes"], "--task is given twice"),
    ],
)
def test_power_refuses_what_it_would_ignore(arguments, why, capsys):
    assert run(["power", *arguments, "--margin", "1.5"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and why in err
