"""Downloads by pip: what is said when they fail."""

import pytest

from imatrix_lab.core import pypi
from imatrix_lab.errors import FetchFailed


@pytest.mark.parametrize(
    ("variable", "address", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "SOCKS"),
        ("PIP_INDEX_URL", "http://127.0.0.1:9/simple", "No matching distribution"),
    ],
)
def test_pips_own_reason_is_quoted(variable, address, said, tmp_path, monkeypatch):
    for name in ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pypi.invalid/simple")
    monkeypatch.setenv(variable, address)
    with pytest.raises(FetchFailed) as caught:
        pypi.download("no-such-package-of-ours", "1.0", "0" * 64, tmp_path)
    assert said in caught.value.what
