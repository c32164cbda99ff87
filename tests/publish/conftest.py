"""A Hub that takes uploads, and a login to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.hub_upload import UploadHub

TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"


@pytest.fixture
def upload_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """The loopback Hub; the library's waits are left out, and it sends by LFS."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name in ("HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    with UploadHub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub
