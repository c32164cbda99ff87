"""Chats in a model's own template, which a stranger wrote."""

import json

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import chat
from imatrix_lab.errors import BadModel, BadText
from imatrix_lab.models import chat_template, resolve
from tests import tiny_model

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
)
ASKED = [{"role": "user", "content": "Hva er 2 + 2?"}, {"role": "assistant", "content": "4 <b>"}]


def model_with(template, folder, store):
    path = tiny_model.write(folder / "chat.gguf", chat_template=template)
    return resolve.resolve(str(path), Session(store, Silent()))


def rendered(template, folder, store):
    model = model_with(template, folder, store)
    return chat.documents(model, [("a", ASKED), ("b", ASKED[:1])], "s", "CC0-1.0", folder)


def test_the_model_s_own_marks(tmp_path, own_store):
    first, second = rendered(CHATML, tmp_path, own_store)
    assert first.text == (
        "<|im_start|>user\nHva er 2 + 2?<|im_end|>\n<|im_start|>assistant\n4 <b><|im_end|>"
    )
    assert (first.id, second.id) == ("a", "b") and first.text.startswith(second.text)


def test_a_template_may_refuse_a_chat(tmp_path, own_store):
    with pytest.raises(BadModel, match="only one turn"):
        rendered("{{ raise_exception('only one turn') }}", tmp_path, own_store)


def test_a_program_that_lies_beside_the_model_is_not_run(tmp_path, own_store, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert len(rendered(CHATML, tmp_path, own_store)) == 2


def test_marks_for_training_are_read_over():
    template = "{% for m in messages %}{% generation %}{{ m.role }} {% endgeneration %}{% endfor %}"
    assert chat_template.compiled(template)(ASKED, False) == "user assistant "


def test_the_same_text_on_every_day(tmp_path, own_store):
    first, _ = rendered("{{ strftime_now('%Y-%m-%d') }}" + CHATML, tmp_path, own_store)
    assert first.text.startswith("2026-01-01<|im_start|>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% for m in messages %}",
    ],
    ids=["classes", "globals", "mutation", "syntax"],
)
def test_a_hostile_template_does_nothing(template, tmp_path, own_store):
    with pytest.raises(BadModel):
        rendered(template, tmp_path, own_store)


def test_a_template_that_never_ends_is_stopped(tmp_path, own_store, monkeypatch):
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 2.0)
    endless = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(BadModel, match="2 s"):
        rendered(endless, tmp_path, own_store)


def test_one_that_only_computes_is_stopped_on_a_busy_machine_too(tmp_path, own_store, monkeypatch):
    """Its processor time counts; a C call that never ends hears no signal of Python's."""
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 60.0)
    with pytest.raises(BadModel, match="SIGXCPU"):
        rendered("{{ (9 ** (9 ** 8)) % 7 }}", tmp_path, own_store)


def test_a_template_that_takes_all_memory_is_stopped(tmp_path, own_store):
    with pytest.raises(BadModel):
        rendered("{{ 'x' * 10000000000 }}", tmp_path, own_store)


def test_a_template_that_takes_parts_or_leaves_messages_out(tmp_path, own_store):
    parts = "{% for m in messages %}{{ m.role }}{% for p in m.content %}{{ p.text }}{% endfor %}"
    first, second = rendered(parts + "{% endfor %}", tmp_path, own_store)
    assert (first.text, second.text) == ("userHva er 2 + 2?assistant4 <b>", "userHva er 2 + 2?")
    with pytest.raises(BadModel, match="leaves out") as caught:
        rendered("{% for m in messages %}{{ m.role }}{% endfor %}", tmp_path, own_store)
    assert caught.value.fix == "leave out --chat"


def test_a_model_without_a_template(tiny, tmp_path, own_store):
    model = resolve.resolve(str(tiny), Session(own_store, Silent()))
    with pytest.raises(BadModel):
        chat.documents(model, [("a", ASKED)], "s", "CC0-1.0", tmp_path)


def test_reading(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"id": "x", "messages": ASKED}) + "\n\n", encoding="utf-8")
    assert list(chat.read(path)) == [("x", ASKED)]
    parts = [{**ASKED[0], "content": [{"type": "image"}, {"type": "text", "text": "Se her"}]}]
    path.write_text(json.dumps({"id": "x", "messages": parts}))
    assert list(chat.read(path)) == [("x", [{"role": "user", "content": "Se her"}])]
    for bad in ('{"messages": 1}', "x", json.dumps({"messages": ASKED[1:]}), '{"messages": []}'):
        path.write_text(bad)
        with pytest.raises(BadText, match="line 1"):
            list(chat.read(path))
    path.write_bytes(b'{"messages": "caf\xe9"}')
    with pytest.raises(BadText, match="byte 17"):
        list(chat.read(path))
