"""A tiny model in process and servers at an address, from the command line."""

import json

import pytest
from click.testing import CliRunner

from imatrix_lab.cli.main import cli
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import client
from imatrix_lab.records import parquet
from imatrix_lab.tasks import backends, records
from imatrix_lab.tasks import judge_prompts as judges
from tests import tiny_model
from tests.tasks.fakes import chat_server


def command(*words, env=None):
    done = CliRunner().invoke(cli, [str(w) for w in words], env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done


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
    command("compare", out, "--any-size")
    command("task", "flips", *done.stdout.split())
    assert "score" in command("task", "show", out).stdout


def test_a_context_without_room_is_said_before_anything_is_asked(data, quants, tmp_path):
    with pytest.raises(UsageError, match="the context of tiny-Q8_0 has 512: there is no room"):
        command("task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json",
                "--ctx", 512, "--quant", quants["Q8_0"], "--out", tmp_path / "out")  # fmt: skip


def test_answers_in_process(data, quants, tmp_path):
    done = command(
        "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json", "--ctx", 768,
        "--quant", quants["Q8_0"], "--out", tmp_path / "out", "--threads", 1, "--keep-text",
        "--parallel", 2,
    )  # fmt: skip
    table = parquet.read(tmp_path / done.stdout.strip())
    assert set(records.words(table, "error")) <= {""}
    assert all(records.words(table, "output"))
    assert table.signature["protocol"]["name"] == "in process"


def test_an_endpoint_of_ones_own(data, tmp_path, monkeypatch):
    """Of a server nothing is known but its name; it cannot score options."""
    monkeypatch.setattr(client, "WAIT_FIRST_S", 0.01)
    with chat_server(lambda text: "x" if "eta on" in text else 500) as url:
        done = command(
            "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json",
            "--quant", "big", "--endpoint", url, "--out", tmp_path / "out", "--keep-text",
        )  # fmt: skip
        table = parquet.read(tmp_path / done.stdout.strip())
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


@pytest.mark.parametrize(
    ("template", "switch", "thinking", "text"),
    [
        ("{% if enable_thinking %}{% endif %}", {"enable_thinking": False}, False, "x"),
        ("{{ '<think>' }}", {"thought_tokens": 4096}, None, "</think>\nx"),
        ("", {}, None, "x"),
    ],
    ids=["switch", "always", "neither"],
)
def test_what_a_server_says_of_its_template(template, switch, thinking, text, data, tmp_path):
    bodies = []
    question = "{% for m in messages %}{{ m.content }}{% endfor %}" if template else ""
    with chat_server(lambda _: text, bodies, {"chat_template": question + template}) as url:
        done = command(
            "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json",
            "--quant", "a", "--endpoint", url, "--out", tmp_path / "out", "--keep-text",
        )  # fmt: skip
    table = parquet.read(tmp_path / done.stdout.strip())
    assert table.signature["protocol"] == {"name": "endpoint", **switch}
    sent = bodies[0].get("chat_template_kwargs", {})
    assert sent.get("enable_thinking") is thinking
    assert set(records.words(table, "prediction")) == {"x"}


def test_thinking_in_process(data, tmp_path, own_store):
    """Templates as of Qwen3 (a switch), R1 (always), and one that knows nothing of thoughts."""
    question = "{% for m in messages %}{{ m.content }}{% endfor %}"
    off = (
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}"
    )
    seen = {}
    for name, end in (("switch", off), ("always", "<think>"), ("never", "")):
        model = tiny_model.write(
            tmp_path / f"{name}-f16.gguf", output_scale=0.25, chat_template=question + end
        )
        for word in ("--no-thinking", "--thinking"):
            done = command(
                "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json",
                "--quant", model, "--out", tmp_path / "out", "--threads", 1, "--keep-text",
                "--parallel", 2, "--max-tokens", 4, "--limit", 1, word,
            )  # fmt: skip
            table = parquet.read(tmp_path / done.stdout.strip())
            output, protocol = records.words(table, "output")[0], table.signature["protocol"]
            seen[name, word] = (done.stdout, output, protocol.get("enable_thinking"))
            if name == "always":
                assert output.startswith("<think>")
    assert seen["never", "--thinking"] == seen["never", "--no-thinking"]
    assert seen["always", "--thinking"] == seen["always", "--no-thinking"]
    assert [seen["switch", word][2] for word in ("--no-thinking", "--thinking")] == [False, True]
    assert len(seen["switch", "--thinking"][1]) > 20 > len(seen["switch", "--no-thinking"][1])


def test_a_judge_on_this_machine(data, quants, tmp_path, monkeypatch):
    """A tiny model without a template gives no verdict, and that is said."""
    monkeypatch.setattr(judges, "MAX_TOKENS", 16)
    with chat_server(lambda _: "x") as url:
        done = command(
            "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json",
            "--quant", "a", "--endpoint", url, "--out", tmp_path / "out", "--keep-text",
        )  # fmt: skip
    words = ["task", "judge", done.stdout.strip(), "--model", str(quants["Q8_0"])]
    failed = CliRunner().invoke(cli, [*words, "--parallel", "2"])
    assert "2 answers: the reply has no score" in str(failed.exception)
    assert "note: tiny-Q8_0 has no chat template" in failed.stderr
    (file,) = (tmp_path / "out").glob("*.judge.tiny-Q8_0.jsonl")
    replies = [json.loads(line) for line in file.read_text().splitlines() if line]
    assert len(replies) == 2 and all(len(reply["identity"]) == 64 for reply in replies)


def test_list():
    shown = json.loads(command("task", "list", "--json").stdout)
    assert shown["belebele"]["languages"]
    done = command("task", "list")
    assert "mixeval" in done.stdout
    assert "task judge has instructions in de en ml nb nn" in done.stderr
    assert "not pinned" in done.stdout


def test_without_a_quant_it_is_the_demo_model(data, monkeypatch):
    asked = []
    monkeypatch.setattr(backends, "open_all", lambda request, *_: asked.append(request) or [])
    words = ("task", "run", "mixeval", "--data", data / "mixeval.json", "--langs", "nb")
    command(*words)
    assert [request.quants for request in asked] == [("demo",)]
    failed = CliRunner().invoke(cli, [*map(str, words), "--endpoint", "http://127.0.0.1:9"])
    assert failed.exit_code == 2 and "--quant" in failed.output


def test_a_strangers_text_does_not_steer_the_terminal(data, tmp_path):
    for name, said in (("a", "x \x1b]0;title\x07\x9b2J" + "y" * 999), ("b", "no")):
        with chat_server(lambda _, said=said: said) as url:
            command(
                "task", "run", "mixeval", "--langs", "en", "--data", data / "mixeval.json",
                "--quant", name, "--endpoint", url, "--out", tmp_path, "--keep-text",
            )  # fmt: skip
    both = [tmp_path / f"mixeval.en.{name}.parquet" for name in "ab"]
    shown = command("task", "flips", *both).stdout
    assert "x \ufffd]0;title\ufffd\ufffd2Jyyy" in shown
    assert "(414 characters more)" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}
    assert len(json.loads(command("task", "flips", *both, "--json").stdout)["items"]) == 1
