"""The real engines on a tiny model, from the command line: in process and by llama-server."""

import json

import pytest
from click.testing import CliRunner

from imatrix_lab import tables
from imatrix_lab.cli.main import cli
from imatrix_lab.tasks import records
from tests.tasking.fakes import chat_server


def command(*words, env=None):
    done = CliRunner().invoke(cli, [str(w) for w in words], env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done


@pytest.fixture(autouse=True)
def compiled(kernel_store, tmp_path):
    """The command line's own store has the kernel."""
    (tmp_path / "user" / "imatrix_lab_cache" / "kernel").symlink_to(kernel_store.root / "kernel")


@pytest.fixture
def data(tmp_path):
    items = [
        {"id": "0", "problem_type": "free-form", "context": None, "prompt": "eta on",
         "target": ["x"], "benchmark_name": "x"},
        {"id": "1", "problem_type": "free-form", "context": None, "prompt": "ris nat",
         "target": ["y"], "benchmark_name": "x"},
    ]  # fmt: skip
    (tmp_path / "mixeval.json").write_text(json.dumps(items))
    rows = [{"sample_id": str(i), "question": f"eta {'on ' * 10 * i}?", "answer": "A",
             **{f"option_{x}": x for x in "abcd"}} for i in range(1, 5)]  # fmt: skip
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_choices_in_process(data, quants, tmp_path):
    """The longest prompt is longer than the context, and said to be so."""
    out = tmp_path / "out"
    done = command(
        "task", "run", "global-mmlu", "--langs", "en", "--data", data, "--ctx", 160,
        "--quant", quants["Q8_0"], quants["Q2_K"], "--out", out, "--threads", 1,
    )  # fmt: skip
    assert len(done.stdout.split()) == 2
    shown = json.loads(command("task", "show", out, "--json").stdout)
    assert [s["n_items"] for s in shown] == [3, 3], shown
    assert [s["failed"] for s in shown] == [{"prompt longer than the context": 1}] * 2
    command("compare", out)
    command("task", "flips", *done.stdout.split())
    assert "score" in command("task", "show", out).stdout


@pytest.mark.parametrize("engine", [(), ("--endpoint", "local")], ids=["in process", "server"])
def test_answers(engine, data, quants, tmp_path):
    done = command(
        "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json", "--ctx", 768,
        "--quant", quants["Q8_0"], "--out", tmp_path / "out", "--threads", 1, "--keep-text",
        "--parallel", 2, *engine,
    )  # fmt: skip
    table = tables.read(tmp_path / done.stdout.strip())
    assert set(records.words(table, "error")) <= {""}
    assert all(records.words(table, "output"))
    name = "llama-server" if engine else "in process"
    assert table.signature["protocol"]["name"] == name


def test_an_endpoint_of_ones_own(data, tmp_path):
    """Of a server nothing is known but its name; it cannot score options."""
    with chat_server(lambda text: "x" if "eta on" in text else 500) as url:
        done = command(
            "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json",
            "--quant", "big", "--endpoint", url, "--out", tmp_path / "out", "--keep-text",
        )  # fmt: skip
        table = tables.read(tmp_path / done.stdout.strip())
        assert table.signature["quant"]["host"] in url  # another server's "big" is another model
        assert sorted(map(bool, records.words(table, "error"))) == [False, True]
        failed = CliRunner().invoke(
            cli, ["task", "run", "global-mmlu", "--langs", "en", "--data", str(data), "--quant",
                  "big", "--endpoint", url, "--out", str(tmp_path / "out")],
        )  # fmt: skip
        assert "likelihood" in str(failed.exception)
    with chat_server(lambda text: "Score: 1") as url:
        graded = command("task", "judge", done.stdout.strip(), "--endpoint", url, "--model", "j")
        assert graded.stdout.startswith("judge 100.00%, rule 100.00%")
    with chat_server(lambda text: "oversatt") as url:
        command("task", "translate", "mixeval", "--to", "nb", "--endpoint", url, "--model", "j",
                "--data", data / "mixeval.json", "--out", tmp_path / "nb")  # fmt: skip
    assert len(json.loads((tmp_path / "nb" / "mixeval.nb.json").read_text())) == 2


def test_list():
    found = json.loads(command("task", "list", "--json").stdout)
    assert found["belebele"]["languages"]
    assert "mixeval" in command("task", "list").stdout
