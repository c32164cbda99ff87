"""Chats in the words of a model's template; hostile ones are in corpus/test_chat.py."""

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadModel
from imatrix_lab.models import chat_template, resolve
from imatrix_lab.models.chat_template import Rendered
from tests import tiny_model

TEMPLATE = (
    "{% for m in messages %}{{ raise_exception('no system') if m['role'] == 'system' }}"
    "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CHAT = [{"role": "user", "content": "Hva er 2 + 2?"}]


@pytest.fixture
def model(tmp_path, own_store):
    path = tiny_model.write(tmp_path / "chat.gguf", chat_template=TEMPLATE)
    return resolve.resolve(str(path), Session(own_store, Silent()))


def test_with_and_without_room_for_an_answer(model, tmp_path):
    (asked,) = chat_template.render(model, [CHAT], tmp_path, answer=True)
    (told,) = chat_template.render(model, [CHAT], tmp_path)
    assert asked == Rendered("user: Hva er 2 + 2?\nassistant:")
    assert told == Rendered("user: Hva er 2 + 2?\n")


def test_a_chat_that_is_refused_leaves_the_others(model, tmp_path):
    system = [{"role": "system", "content": "x"}, *CHAT]
    first, second = chat_template.render(model, [system, CHAT], tmp_path)
    assert (first.text, first.error) == ("", "TemplateError: no system")
    assert second == Rendered("user: Hva er 2 + 2?\n")


def test_thousands_of_chats_in_a_long_template(tmp_path, own_store, monkeypatch):
    """As many as a benchmark has: the program is compiled once a block, and blocks are timed."""
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 10.0)
    unused = "{% if messages is mapping %}{{ messages['x'] | upper }}{% endif %}" * 300
    path = tiny_model.write(tmp_path / "long.gguf", chat_template=unused + TEMPLATE)
    chats = [[{"role": "user", "content": str(i)}] for i in range(3000)]
    found = chat_template.render(
        resolve.resolve(str(path), Session(own_store, Silent())), chats, tmp_path
    )
    assert [r.text for r in found] == [f"user: {i}\n" for i in range(3000)]


def test_a_base_model(tiny, tmp_path, own_store):
    model = resolve.resolve(str(tiny), Session(own_store, Silent()))
    assert chat_template.of(model) == ""
    with pytest.raises(BadModel, match="no chat template"):
        chat_template.render(model, [CHAT], tmp_path)
