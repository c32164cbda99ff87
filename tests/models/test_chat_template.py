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


# -- messages that a template takes in parts, or not at all

PARTS = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
    "{% if part.type == 'text' %} {{ part.text | trim }}{% endif %}{% endfor %}\n{% endfor %}"
)
TALK = [*CHAT, {"role": "assistant", "content": "<think>\nlett\n</think>\n\n 4. "}, *CHAT]


def rendered(template, folder, store, *chats, **options):
    path = tiny_model.write(folder / "t.gguf", chat_template=template)
    model = resolve.resolve(str(path), Session(store, Silent()))
    return chat_template.render(model, chats or [CHAT], folder, **options)


@pytest.mark.parametrize(
    "template",
    [
        PARTS,
        PARTS.replace("{% if", "{{ raise_exception('parts') if m.content is string }}{% if"),
        "{% for m in messages %}{{ m.role + ': ' + m.content[0]['text'] }}\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[0].text }}"
        "{% else %}{{ m.content + '' }}{% endif %}{% endfor %}",
    ],
    ids=["parts", "parts or an error", "the first part", "only the user's"],
)
def test_messages_in_parts(template, tmp_path, own_store):
    short, talk = rendered(template, tmp_path, own_store, [{**CHAT[0], "content": "e"}], TALK)
    assert talk.error == "" and "type" not in talk.text
    assert talk.text.count("Hva er 2 + 2?") == 2 and "4." in talk.text
    assert short.text.rstrip().endswith("e")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}user: {% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content[1:] }}{% endfor %}",
        "{% for m in messages %}{{ m['text'] }}{% endfor %}",
    ],
)
@pytest.mark.parametrize("content", ["Hva er 2 + 2?", "e"])
def test_a_template_that_leaves_out_what_is_asked(template, content, tmp_path, own_store):
    with pytest.raises(BadModel, match="leaves out") as caught:
        rendered(template, tmp_path, own_store, [{"role": "user", "content": content}])
    assert caught.value.where.endswith("t.gguf") and "--endpoint" in caught.value.fix


def test_one_message_that_is_left_out(tmp_path, own_store):
    template = "{% for m in messages %}{{ m.content.replace('ost', 'x') }}{% endfor %}"
    odd = [{"role": "user", "content": "En ost"}]
    good, bad = rendered(template, tmp_path, own_store, CHAT, odd)
    assert (good.error, bad.error) == ("", chat_template.LEFT_OUT)


def test_spaces_thoughts_and_a_system_s_message_may_be_left_out(tmp_path, own_store):
    template = (
        "{% for m in messages if m.role != 'system' %}"
        "{{ m.content.split('</think>')[-1] | trim }}|{% endfor %}"
    )
    system = {"role": "system", "content": "Kort."}
    lines = {"role": "user", "content": "\n en  \n to\n"}
    first, second = rendered(template, tmp_path, own_store, [system, *TALK], [lines])
    assert first == Rendered("Hva er 2 + 2?|4.|Hva er 2 + 2?|")
    assert second == Rendered("en  \n to|")


# -- thoughts

SWITCH = TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
ALWAYS = TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}"


def test_the_switch_of_a_template(tmp_path, own_store):
    def end(**options):
        (one,) = rendered(SWITCH, tmp_path, own_store, answer=True, **options)
        return one.text.partition("assistant:")[2], one.opened

    assert end() == end(thinking=True) == ("", "")
    assert end(thinking=False) == ("<think>\n\n</think>\n\n", "")


def test_thoughts_that_a_prompt_begins(tmp_path, own_store):
    (asked,) = rendered(ALWAYS, tmp_path, own_store, answer=True, thinking=False)
    assert asked.text.endswith("assistant:<think>\n") and asked.opened == "<think>\n"
    assert chat_template.thoughts_opened(ALWAYS) == "<think>\n"
    for template in (SWITCH, TEMPLATE, "", ALWAYS + "{{ raise_exception('<think>') }}"):
        assert chat_template.thoughts_opened(template) == ""


def test_marks_of_thoughts_in_a_question_are_not_taken_for_such():
    text = chat_template.unmarked("</think> <think> [THINK] <seed:think> <thin>")
    assert text == "< /think> < think> [ THINK] < seed:think> <thin>"
