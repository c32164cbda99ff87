"""What a pool is known by."""

from dataclasses import replace

import pytest

from imatrix_lab.corpus import cleaned, languages
from imatrix_lab.corpus.sources import files, local_sha256
from imatrix_lab.corpus.sources.base import Pinned
from imatrix_lab.errors import BadText


@pytest.mark.parametrize(
    "corrected",
    [
        {"licence": "MIT"},
        {"licence_class": "permissive"},
        {"origin": "elsewhere"},
        {"note": "other words"},
        {"settings": {"files": [], "field": "body"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_corrected_source_is_another_pool(tmp_path, corrected):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Ein.", "body": "To."}')
    source = files.add([path], "nn", "mine", "CC0-1.0")
    language = languages.get("nn")
    before = Pinned(source, "own", local_sha256(source))
    after = replace(before, source=replace(source, **corrected))
    assert cleaned.inputs(language, before, 1) != cleaned.inputs(language, after, 1)
    remembered = cleaned.identity(before)
    assert str(tmp_path) not in str(remembered)  # the same on another machine
    assert cleaned.restored(remembered, language) == before
    now = replace(language, sources=(after.source,))
    with pytest.raises(BadText, match="mine") as caught:
        cleaned.restored(remembered, now)
    assert caught.value.fix == "imatrix-lab corpus build nn --renew"
