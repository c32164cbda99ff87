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
    ],
)
def test_parse(spec:
    assert hub_spec.parse(spec) == expected
    assert hub_spec.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "hf:",
        "hf:repo",
        "hf:org/",
        "hf:org/repo/file.gguf",
        "org/repo",
        "hf:org/repo@",
        "hf:org/repo:",
        "hf:org/repo@a@b",
        "hf:../repo",
        "hf:org/..",
        "hf:org/re po",
        "hf:org/a--b",
        "hf:org/repo:/etc/passwd",
        "hf:https://huggingface.co/org/repo",
        "hf:org/repo\n",
        "hf:ørg/repo",
    ],
)
def test_parse_says_what_is_right(spec: str) -> None:
    with pytest.raises(UsageError, match="hf:org/repo") as caught:
        hub_spec.parse(spec)
    assert "for example" in str(caught.value)


