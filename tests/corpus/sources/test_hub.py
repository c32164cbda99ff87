"""Data sets streamed from a loopback server that speaks the Hub's protocol."""

import io
import json
import socket
import sys
import threading
import time
import types
from dataclasses import replace

import datasets
import huggingface_hub
import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages
from imatrix_lab.corpus.sources import hub
from imatrix_lab.errors import BadText, FetchFailed
from tests.fakes.hub_server import HubServer

WEB, TALK = "HuggingFaceFW/fineweb-2", "ltg/nb-samtale-conversations"
CARD = b"""---
configs:
- config_name: nob_Latn
  data_files:
  - split: train
    path: data/nob_Latn/train/*
  - split: test
    path: data/nob_Latn/test/*
---
"""


def table(first, n_rows):
    raw = io.BytesIO()
    rows = range(first, first + n_rows)
    columns = {
        "text": [f"Rad {i}.\r\n\r\n\r\nSlutt." for i in rows],
        "id": [f"<{i}>" for i in rows],
    }
    parquet.write_table(pyarrow.table(columns), raw, row_group_size=20)
    return raw.getvalue()


@pytest.fixture
def server(monkeypatch):
    talk = [{"id": "samtale_1", "messages": ["Hei.", "Hallo."], "speakers": [{"id": "P1"}]}]
    repos = {
        WEB: {
            "main": {
                "README.md": CARD,
                "data/nob_Latn/train/000.parquet": table(900, 3),
                "data/nob_Latn/test/000.parquet": table(0, 50),
                "data/nob_Latn/test/001.parquet": table(50, 10),
            }
        },
        TALK: {"main": {"conversations.jsonl": "\n".join(map(json.dumps, talk)).encode()}},
    }
    monkeypatch.setattr(hub, "_unreachable", {})
    with HubServer(repos) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        # the libraries read it once, when they are imported
        template = found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", found.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found


def source(name, **settings):
    (found,) = (s for s in languages.get("nb").sources if s.name == name)
    kept = {k: v for k, v in found.settings.items() if k != "revision"}
    return replace(found, settings={**kept, **settings})


def read(found, store):
    pinned = hub.reach(found, Session(store, Silent()))
    return list(hub.documents(pinned, languages.get("nb"), Session(store, Silent())))


def test_a_split_is_streamed_in_order(server, own_store):
    found = read(source("fineweb-2"), own_store)
    commit = server.commit(WEB)
    assert [d.id for d in found] == [
        f"fineweb-2@{commit[:12]}/nob_Latn/<{i}>/{i:06d}" for i in range(60)
    ]
    assert found[7].text == "Rad 7.\n\nSlutt."
    assert {d.licence for d in found} == {"ODC-By-1.0"}


def test_conversations_become_paragraphs(server, own_store):
    (found,) = read(source("nb-samtale"), own_store)
    assert found.text == "Hei.\n\nHallo."
    assert found.id.endswith("/samtale_1/000000")


def test_only_what_is_read_is_fetched(server, own_store):
    pinned = hub.reach(source("fineweb-2"), Session(own_store, Silent()))
    documents = hub.documents(pinned, languages.get("nb"), Session(own_store, Silent()))
    assert next(documents).id.endswith("/<0>/000000")
    assert not [r for r in server.requests if "test/001.parquet" in r.path]
    documents.close()


def test_a_revision_is_resolved_or_kept(server, own_store):
    old = server.commit(WEB)
    newest = hub.reach(source("fineweb-2"), Session(own_store, Silent()))
    assert newest.version == old
    server.push(WEB, "main", {"README.md": CARD})
    kept = hub.reach(source("fineweb-2", revision=old), Session(own_store, Silent()))
    assert kept == replace(newest, source=kept.source)
    moved = hub.reach(source("fineweb-2"), Session(own_store, Silent()))
    assert moved.version != old and moved.sha256 != newest.sha256


def test_what_is_not_there_is_told(server, own_store):
    with pytest.raises(FetchFailed):
        hub.reach(source("fineweb-2", revision="0" * 40), Session(own_store, Silent()))
    with pytest.raises(FetchFailed, match="datasets/org/none"):
        hub.reach(source("fineweb-2", repo="org/none"), Session(own_store, Silent()))
    with pytest.raises(FetchFailed):
        read(source("fineweb-2", config="xxx_Latn"), own_store)
    with pytest.raises(BadText, match=r"row 0 .*'tekst'"):
        read(source("fineweb-2", text="tekst"), own_store)


def test_a_damaged_file_is_told(server, own_store):
    server.corrupt("data/nob_Latn/test/001.parquet")
    with pytest.raises(FetchFailed):
        read(source("fineweb-2"), own_store)


def test_a_hub_that_never_answers_is_left_after_seconds(own_store, monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", {})
    monkeypatch.setattr(hub, "REACH_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(FetchFailed, match="cannot be reached"):
                hub.reach(source("fineweb-2"), Session(own_store, Silent()))
        monkeypatch.setattr(hub, "REACH_S", 60)  # it is not asked a second time
        began = time.monotonic()
        with pytest.raises(FetchFailed, match="cannot be reached"):
            hub.reach(source("wikipedia"), Session(own_store, Silent()))
        assert time.monotonic() - began < 30


def test_loading_the_library_does_not_count_as_waiting(server, own_store, monkeypatch):
    """Its first import takes seconds on a slow disk; here we see which thread asks for it."""

    class Slow(types.ModuleType):
        def __getattr__(self, name):
            if name == "HfApi":
                asked.append(threading.current_thread())
            return getattr(huggingface_hub, name)

    asked = []
    monkeypatch.setitem(sys.modules, "huggingface_hub", Slow("huggingface_hub"))
    hub.reach(source("fineweb-2"), Session(own_store, Silent()))
    assert set(asked) == {threading.main_thread()}


def test_null_and_repeated_ids_lose_no_row(server, own_store):
    rows = [{"id": "a", "messages": ["Ein."]}, {"id": "a", "messages": ["To."]},
            {"id": None, "messages": ["Tre."]}]  # fmt: skip
    server.push(TALK, "main", {"conversations.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    found = read(source("nb-samtale"), own_store)
    assert [d.id.split("/", 2)[2] for d in found] == ["a/000000", "a/000001", "000002"]


def test_offline_is_offline(server, own_store, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE"):
        hub.reach(source("fineweb-2"), Session(own_store, Silent()))
    assert server.requests == []
