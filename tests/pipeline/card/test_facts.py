"""What a header tells for the card."""

import hashlib
import json

import pytest

from imatrix_lab.core import hub_cache
from imatrix_lab.pipeline.card.facts import CONTEXT, facts_of, left_out
from tests import tiny_model

COMMIT = "c" * 40


def test_memory_types_and_template(tmp_path):
    path = tiny_model.write(tmp_path / "m.gguf", chat_template="{{ messages }}")
    facts = facts_of([path])
    cache = 2 * tiny_model.LAYERS * 2 * CONTEXT * tiny_model.CHANNELS  # keys and values, 16 bits
    more = facts["memory_bytes"] - path.stat().st_size - cache
    assert 4 * 512 * tiny_model.FEED_FORWARD < more < 2**23
    assert facts["types_by_role"]["ffn_down"] == {"F16": tiny_model.LAYERS}
    assert "attn_norm" not in facts["types_by_role"]
    assert facts["chat_template_sha256"] == hashlib.sha256(b"{{ messages }}").hexdigest()


def test_layers_with_heads_of_their_own(tmp_path):
    def heads(writer):
        writer.add_head_count_kv([4, 0])

    plain = facts_of([tiny_model.write(tmp_path / "a.gguf")])["memory_bytes"]
    path = tmp_path / "b.gguf"
    fewer = facts_of([tiny_model.write(path, extra=heads)])["memory_bytes"]
    half = tiny_model.LAYERS * 2 * CONTEXT * tiny_model.CHANNELS
    assert abs(plain - fewer - half) < 100  # and a few bytes of the header


def test_towers_and_layers_of_the_original_that_are_not_in_the_file():
    folder = hub_cache.CachedRepo(hub_cache.default_root(), "org/model").snapshot(COMMIT)
    folder.mkdir(parents=True)
    config = {"vision_config": {"depth": 2}, "num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    origin = f"hf:org/model@{COMMIT}"
    missing = left_out(origin, 0)
    assert any("vision" in part for part in missing) and any("MTP" in part for part in missing)
    assert not any("MTP" in part for part in left_out(origin, 1))
    assert left_out("model-f16.gguf", 0) == left_out("demo", 0) == []


@pytest.mark.parametrize("text", ["[]", "7", "[" * 5000, ""])
def test_a_config_that_is_none(text):
    folder = hub_cache.CachedRepo(hub_cache.default_root(), "org/model").snapshot(COMMIT)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    assert left_out(f"hf:org/model@{COMMIT}", 0) == []
