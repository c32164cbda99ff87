"""Uploads to the loopback Hub: order, cuts, what is there already, and what is refused."""

import dataclasses
import hashlib
import random
import traceback

import pytest
from huggingface_hub import HfApi

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import FetchFailed, UsageError
from imatrix_lab.publish import upload
from imatrix_lab.publish.files import CARD, Item
from tests.publish.conftest import TOKEN

REPO = "user/Model-nb-GGUF"
UNMENDED = 10**9


def item(name: str, content: bytes) -> Item:
    return Item(name, content, hashlib.sha256(content).hexdigest(), len(content))


def weights(seed: int, n_bytes: int) -> bytes:
    return b"GGUF\0" + random.Random(seed).randbytes(n_bytes)


def items(**changed: bytes) -> list[Item]:
    contents = {
        "m-nb-Q4_K_M.gguf": weights(1, 350_000),  # four parts
        "m-nb-Q3_K_M.gguf": weights(2, 60_000),
        "m-nb.imatrix.gguf": weights(3, 5_000),
        "results.json": b'{"files": []}\n',
        CARD: b"---\nlibrary_name: gguf\n---\n\n# Model\n",
    }
    return [item(name, content) for name, content in {**contents, **changed}.items()]


@pytest.fixture
def files(tmp_path):
    """The same items, large ones from paths as they are in a folder."""
    result = []
    for i in items():
        if i.name.endswith(".gguf"):
            (tmp_path / i.name).write_bytes(i.content)
            i = dataclasses.replace(i, content=tmp_path / i.name)  # noqa: PLW2901
        result.append(i)
    return result


def publish(files, *, is_private=False, replace=False):
    return upload.upload(REPO, files, is_private, replace, Silent())


def contents(files):
    read = {i.name: i.content for i in files}
    return {n: c if isinstance(c, bytes) else c.read_bytes() for n, c in read.items()}


def published(hub, revision="main"):
    return {n: c for n, c in hub.files(REPO, revision).items() if n != ".gitattributes"}


def test_everything_arrives_the_card_last_then_a_tag(upload_hub, files):
    assert publish(files, is_private=True) == "v1"
    assert published(upload_hub) == contents(files)
    assert upload_hub.private[REPO]
    steps = [set(names) - {".gitattributes"} for _, names in upload_hub.history]
    assert steps == [set(), contents(files).keys() - {CARD}, contents(files).keys()]
    assert upload_hub.tags[REPO] == {"v1": upload_hub.commit(REPO)}
    assert upload_hub.storage.n_bytes == sum(i.size_bytes for i in files if ".gguf" in i.name)


def test_two_who_publish_the_same_at_once(upload_hub, files, monkeypatch):
    """Another one publishes everything once the first has found nothing there."""
    check, tags = upload._require_card, []

    def after_another(*args):
        monkeypatch.setattr(upload, "_require_card", check)
        tags.append(publish(files))
        check(*args)

    monkeypatch.setattr(upload, "_require_card", after_another)
    tags.append(publish(files))
    assert tags == ["v1", "v1"]
    assert published(upload_hub) == contents(files)
    assert upload_hub.tags[REPO] == {"v1": upload_hub.commit(REPO)}


@pytest.mark.parametrize(("theirs", "ours"), [("", "v1"), ("0" * 40, "v2")])
def test_a_tag_that_another_one_makes_meanwhile(upload_hub, files, monkeypatch, theirs, ours):
    """Of the same files it is ours too; one of others is not, and the next is made."""
    create = HfApi.create_tag

    def after_another(api, repo, *, tag, revision, **rest):
        monkeypatch.setattr(HfApi, "create_tag", create)
        upload_hub.tags[REPO] = {tag: theirs or revision}
        return create(api, repo, tag=tag, revision=revision, **rest)

    monkeypatch.setattr(HfApi, "create_tag", after_another)
    assert publish(files) == ours
    assert upload_hub.tags[REPO][ours] == upload_hub.commit(REPO)


def test_the_same_again_sends_and_tags_nothing(upload_hub, files):
    publish(files)
    history, sent = list(upload_hub.history), upload_hub.storage.n_bytes
    assert publish(files) == "v1"
    assert (upload_hub.history, upload_hub.storage.n_bytes) == (history, sent)


@pytest.mark.parametrize("seed", range(4))
def test_cuts_at_random_moments(upload_hub, files, seed):
    upload_hub.cut_after(UNMENDED)
    publish(files)
    n_units = UNMENDED - upload_hub.left
    rng, n_cuts, wanted = random.Random(seed), 0, contents(files)
    upload_hub.forget()
    while True:
        # the first is surely cut, the others may end
        upload_hub.cut_after(rng.randrange(n_units if n_cuts else n_units // 2))
        try:
            publish(files)
            break
        except FetchFailed as error:
            n_cuts += 1
            assert "again" in error.fix
        upload_hub.mend()
        there = published(upload_hub)
        assert there.items() <= wanted.items(), "no file is half there"
        assert CARD not in there or there == wanted, "the card is the last"
        assert set(upload_hub.tags.get(REPO, {})) <= {"v1"} and (
            there == wanted or not upload_hub.tags.get(REPO)
        )
    assert published(upload_hub) == wanted
    assert upload_hub.tags[REPO] == {"v1": upload_hub.commit(REPO)}
    largest = max(map(len, wanted.values()))
    total = sum(len(content) for name, content in wanted.items() if ".gguf" in name)
    assert upload_hub.storage.n_bytes <= total + n_cuts * largest
    assert n_cuts


def test_a_connection_that_breaks_once_is_tried_again(upload_hub, files):
    upload_hub.cut_after(100)
    upload_hub.on_cut = upload_hub.mend
    assert publish(files) == "v1"
    assert published(upload_hub) == contents(files)


def test_other_files_are_replaced_only_if_asked(upload_hub, files):
    publish(files)
    newer = items(**{"m-nb-Q3_K_M.gguf": weights(9, 70_000), CARD: b"---\na: b\n---\n\n# New\n"})
    before = published(upload_hub)
    with pytest.raises(UsageError) as caught:
        publish(newer)
    assert "m-nb-Q3_K_M.gguf" in caught.value.what and "--replace" in caught.value.fix
    assert published(upload_hub) == before
    assert publish(newer, replace=True) == "v2"
    assert published(upload_hub) == contents(newer)
    assert published(upload_hub, "v1") == before


def test_parts_of_a_file_that_is_split_otherwise_are_deleted_and_others_kept(upload_hub, files):
    stale = [f"m-nb-Q4_K_M-0000{k}-of-00002.gguf" for k in (1, 2)]
    other = item("note.txt", b"mine")
    publish([*[item(name, weights(5, 1000)) for name in stale], other, files[-1]])
    with pytest.raises(UsageError, match="Q4_K_M-00001-of"):
        publish(files)
    states = upload.diff(REPO, files).states()
    assert all("deleted" in states[name] for name in stale) and states["note.txt"] == "kept"
    publish(files, replace=True)
    assert published(upload_hub) == {**contents(files), **contents([other])}


def test_other_bytes_than_were_sent_are_noticed_before_the_card(upload_hub, files):
    upload_hub.corrupts = "m-nb-Q3_K_M.gguf"
    with pytest.raises(FetchFailed, match="Q3_K_M"):
        publish(files)
    assert CARD not in published(upload_hub) and not upload_hub.tags


@pytest.mark.parametrize("front", ["- a list\n", "license: no such\n", "a: [\n"])
def test_a_card_that_the_hub_does_not_take_is_told_first(upload_hub, front):
    with pytest.raises(UsageError, match="card"):
        publish(items(**{CARD: f"---\n{front}---\n\n# Model\n".encode()}))
    assert not upload_hub.history


def test_a_public_repository_is_not_taken_for_a_private_one(upload_hub, files):
    publish(files)
    with pytest.raises(UsageError, match="public"):
        publish(files, is_private=True)


def test_without_a_login_or_with_one_that_is_refused(
    upload_hub, files, monkeypatch, caplog, capsys
):
    secret = "hf_somebodyElsesTokenWhichIsSecret"
    for token, error in (("", UsageError), (secret, FetchFailed)):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(error) as caught:
            publish(files)
        assert "hf auth login" in caught.value.fix
        told = (
            "".join(traceback.format_exception(caught.value))
            + caplog.text
            + str(capsys.readouterr())
        )
        assert secret not in told and TOKEN not in told
    assert not upload_hub.history


@pytest.mark.parametrize("repo", ["model", "a/b/c", "user/..", "user/a b", "hf:user/model"])
def test_what_is_no_repository(repo):
    with pytest.raises(UsageError):
        upload.check_repo(repo)
