"""``imatrix predict`` as a user calls it."""

import json
import os
from pathlib import Path

import pytest

from imatrix_lab.cli.main import run


@pytest.fixture
def cache(own_directories, toolchain_in_own_cache, loss_store):
    """The test's own cache, with the kernel in it."""
    return Path(os.environ["IMATRIX_LAB_CACHE"])


@pytest.fixture
def words(tiny, imatrix_of, cache, tmp_path):
    """The command with two languages and none; the files have names of their own."""
    files = []
    for name in ("nb", "en"):
        files.append(tmp_path / f"{name}.imatrix.gguf")
        files[-1].write_bytes(imatrix_of(tiny, name).read_bytes())
    return [
        "imatrix", "predict", "--model", str(tiny), "--threads", "2",
        "--imatrix", *map(str, files), "none",
    ]  # fmt: skip


def test_tables_by_type_and_role(words, capsys):
    assert run([*words, "--type", "Q2_K", "Q3_K_S", "--by", "role"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    heads = [i for i, row in enumerate(rows) if row[0] == "role"]
    assert len(heads) == 2 and " ".join(rows[heads[0]]) == "role Q2_K made with on nb on en"
    assert rows[heads[0] + 1][:2] == ["all", "nb"] and rows[heads[0] + 3][0] == "none"
    roles = {row[0] for row in rows if len(row) == 4} - {"all"}
    assert roles == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    }  # fmt: skip
    assert "14 tensors" in err and "token_embd.weight, output.weight" in err
    assert "6 quants" in err


def test_json_has_the_same_numbers(words, capsys):
    assert run([*words, "--type", "Q2_K"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run([*words, "--type", "Q2_K", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [r["calibration"] for r in result["rows"]] == ["nb", "en", "none"]
    for row, cells in zip(result["rows"], table[1:], strict=True):
        assert [f"{1e4 * row['relative_loss'][n]:.2f}" for n in ("nb", "en")] == cells[1:]
        assert set(row["layer"]) == {"0", "1"}
    assert result["n_tensors"] == 14 and result["selections"] == []


@pytest.mark.parametrize("select", ["worst", "nb=3,en=1"])
def test_select_says_whether_it_was_worth_it(words, capsys, select):
    assert run([*words, "--type", "Q2_K", "--select", select]) == 0
    out = capsys.readouterr().out
    assert "best of 21 mixtures: nb=0." in out
    assert run([*words, "--type", "Q2_K", "--select", select, "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["selections"]
    assert best["recomputed"]["nb"] > 0
    assert best["objective"] < min(best["pure_objective"].values())
    assert best["command"] in out and f"{1e4 * best['objective']:.2f} against" in out


def test_names_and_quants_that_are_there(tiny, imatrix_of, quantized, cache, capsys):
    nb = imatrix_of(tiny, "nb")
    words = ["imatrix", "predict", "--model", str(tiny), "--imatrix", f"Bokmål={nb}", "none"]
    quants = [f"Bokmål={quantized(tiny, 'Q2_K', nb)}", f"none={quantized(tiny, 'Q3_K_S')}"]
    assert run([*words, "--quant", *quants]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["Q2_K", "Bokmål", "Q3_K_S", "none"]
    assert "removed" not in err


@pytest.mark.parametrize(
    ("extra", "status", "named"),
    [
        (["--select", "worst=x"], 2, "worst=x"),
        (["--select", "nb=-1"], 2, "nb=-1"),
        (["--select", "nb=0"], 2, "--select"),
        (["--quant", "file.gguf"], 2, "NAME=FILE"),
        (["--quant", "sv=file.gguf"], 2, "sv"),
        (["--imatrix", "missing.gguf"], 2, "missing.gguf"),
        (["--type", "Q9"], 2, "Q9"),
    ],
)
def test_what_is_refused(words, capsys, extra, status, named):
    assert run([*words, *extra]) == status
    assert named in capsys.readouterr().err
