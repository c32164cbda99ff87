"""Words and addresses that name files on the Hub."""

import pytest

from imatrix_lab.errors import UsageError
from imatrix_lab.models import hub_spec
from imatrix_lab.models.hub_spec import HubRef


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf:org/repo", HubRef("org/repo")),
        ("hf:org/repo@v1.0", HubRef("org/repo", "v1.0")),
        ("hf:org/repo@refs/pr/1:*Q4*.gguf", HubRef("org/repo", "refs/pr/1", "*Q4*.gguf")),
        ("hf:o-1/r.2_x:sub/a b.gguf", HubRef("o-1/r.2_x", None, "sub/a b.gguf")),
        ("hf:org/repo@" + "AB" * 20, HubRef("org/repo", "ab" * 20)),
        ("hf:org/a@b:[QX]4?.gguf", HubRef("org/a", "b", "[QX]4?.gguf")),
        ("hf:org/repo@feature/x", HubRef("org/repo", "feature/x")),
    ],
)
def test_parse(spec, expected):
    assert hub_spec.parse(spec) == expected
    assert hub_spec.parse(str(expected)) == expected


FILE = HubRef("org/repo", None, "sub/a b.gguf")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf:org/repo/sub/a b.gguf", FILE),
        ("hf://org/repo/sub/a b.gguf", FILE),
        ("hf:org/repo@v2/x.dat", HubRef("org/repo", "v2", "x.dat")),
        ("hf:org/repo@refs/pr/1/x.imatrix", HubRef("org/repo", "refs/pr/1", "x.imatrix")),
        ("https://huggingface.co/org/repo", HubRef("org/repo")),
        ("https://huggingface.co/org/repo/", HubRef("org/repo")),
        ("HTTP://HuggingFace.co/org/repo?library=llama#x", HubRef("org/repo")),
        ("hf:https://huggingface.co/org/repo", HubRef("org/repo")),
        ("huggingface.co/org/repo", HubRef("org/repo")),
        ("hf.co/org/repo:Q8_0", HubRef("org/repo", None, "Q8_0")),
        ("https://huggingface.co/org/repo/tree/main", HubRef("org/repo")),
        ("https://huggingface.co/org/repo/tree/v2/Q8", HubRef("org/repo", "v2", "Q8/*")),
        ("https://huggingface.co/org/repo/blob/main/sub/a%20b.gguf", FILE),
        ("https://huggingface.co/org/repo/resolve/main/sub/a%20b.gguf?download=true", FILE),
        ("https://huggingface.co/org/repo/raw/v1/x.gguf", HubRef("org/repo", "v1", "x.gguf")),
        (
            "https://huggingface.co/org/repo/blob/refs%2Fpr%2F1/x.gguf",
            HubRef("org/repo", "refs/pr/1", "x.gguf"),
        ),
        ("https://huggingface.co/org/repo/discussions", HubRef("org/repo")),
        ("https://mirror.invalid/org/repo", HubRef("org/repo")),
        ("https://huggingface.co/org/repo.git", HubRef("org/repo")),
        ("https://huggingface.co/org/repo?show_file_info=sub%2Fa+b.gguf", FILE),
    ],
)
def test_other_ways_to_write_it(spec, expected, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.invalid")
    assert hub_spec.is_spec(spec)
    assert hub_spec.parse(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "hf:",
        "hf:repo",
        "hf:org/",
        "org/repo",
        "hf:org/repo@",
        "hf:org/repo:",
        "hf:org/repo@a@b",
        "hf:../repo",
        "hf:org/..",
        "hf:org/re po",
        "hf:org/a--b",
        "hf:org/repo:/etc/passwd",
        "hf:org/repo\n",
        "hf:ørg/repo",
        "https://huggingface.co/",
        "https://huggingface.co/org",
        "hf.co/org/re po",
    ],
)
def test_parse_says_what_is_right(spec):
    with pytest.raises(UsageError, match="hf:org/repo") as caught:
        hub_spec.parse(spec)
    assert "for example" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("https://example.com/x.gguf", "download the file"),
        ("https://huggingface.co.example.com/org/repo", "download the file"),
        ("https://huggingface.co/datasets/org/texts", "data sets hold no models"),
        ("https://huggingface.co/spaces/org/demo", "spaces hold no models"),
    ],
)
def test_addresses_of_other_things(spec, said):
    assert hub_spec.is_spec(spec)
    with pytest.raises(UsageError, match=said):
        hub_spec.parse(spec)


def test_paths_are_not_on_the_hub():
    for path in ("model.gguf", "./hf.co", "org/repo", "/hf:/x", "~/hf.gguf", "huggingface/x.gguf"):
        assert not hub_spec.is_spec(path)


def test_a_token_in_an_address_is_not_repeated():
    with pytest.raises(UsageError, match="hf auth login") as caught:
        hub_spec.parse("https://me:hf_secret@huggingface.co/org/repo")
    assert "hf_secret" not in str(caught.value)


def test_an_address_that_cannot_be_read():
    with pytest.raises(UsageError):
        hub_spec.parse("https://[huggingface.co/org/repo")
