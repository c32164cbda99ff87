"""Debian packages made here, served to the real apt from a repository of files."""

import bz2
import gzip
import hashlib
import io
import lzma
import shutil
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages
from imatrix_lab.corpus.sources import debian
from imatrix_lab.errors import BadText, FetchFailed, MissingTool

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="there is no apt here")

PAGE = "<html><body><div class='para'>Havet er stort, og det er kaldt i dag.</div></body></html>"
FILES = {
    "./usr/share/doc/x/nb/a.html": PAGE.encode(),
    "./usr/share/doc/x/de/a.html": b"<p>Nein.</p>",
}


def tar(files):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def zstd(raw):
    import pyarrow

    return pyarrow.compress(raw, codec="zstd", asbytes=True)


PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstd}


def package(files, kind=".xz", name="x"):
    control = tar({"./control": f"Package: {name}\nVersion: 1.0\nArchitecture: all\n".encode()})
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": gzip.compress(control),
        f"data.tar{kind}": PACKED[kind](tar(files)),
    }
    raw = b"!<arch>\n"
    for part, content in parts.items():
        raw += f"{part:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        raw += content + b"\n" * (len(content) % 2)
    return raw


@pytest.fixture
def write(tmp_path):
    def make(raw):
        path = tmp_path / "x.deb"
        path.write_bytes(raw)
        return path

    return make


@pytest.mark.parametrize("kind", PACKED)
def test_members_that_fit_are_read(write, kind):
    found = list(debian.members(write(package(FILES, kind)), ["usr/*/nb/*.html"]))
    assert found == [("usr/share/doc/x/nb/a.html", PAGE.encode())]


def test_what_is_packed_inside_is_unpacked(write):
    path = write(package({"./a.gz": gzip.compress(b"text"), "./b": b"b"}))
    assert list(debian.members(path, ["*"])) == [("a", b"text"), ("b", b"b")]


@pytest.mark.parametrize("size", [3, 50, 200, 400])
def test_a_truncated_package_is_told(write, size):
    raw = package(FILES)
    with pytest.raises(BadText):
        list(debian.members(write(raw[:size]), ["*"]))


@pytest.mark.parametrize("size", [b"-60", b"+8", b"0x10", b"1_0", b""])
def test_a_size_that_is_no_number_is_told(write, size):
    raw = b"!<arch>\n" + b"debian-binary".ljust(48) + size.ljust(10) + b"`\n"
    with pytest.raises(BadText):
        list(debian.members(write(raw + b"\n" * 60), ["*"]))


def test_links_and_ways_out_are_not_followed(write):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        link = tarfile.TarInfo("./usr/a.html")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    content = raw.getvalue()
    whole = b"!<arch>\n" + f"{'data.tar':<48}{len(content):<10}`\n".encode() + content
    assert list(debian.members(write(whole), ["*"])) == []


def test_bombs_are_refused(write, monkeypatch):
    monkeypatch.setattr(debian, "FILE_BYTES_MAX", 1000)
    with pytest.raises(BadText):
        list(debian.members(write(package({"./a": b"x" * 1001})), ["*"]))
    with pytest.raises(BadText):
        list(debian.members(write(package({"./a.gz": gzip.compress(b"x" * 1001)})), ["*"]))
    monkeypatch.setattr(debian, "ALL_BYTES_MAX", 1500)
    with pytest.raises(BadText):
        list(debian.members(write(package({"./a": b"x" * 900, "./b": b"y" * 900})), ["*"]))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function: the packages there are -> a repository which is the only one apt knows."""
    folder = tmp_path / "repository"
    folder.mkdir()
    etc = tmp_path / "etc"
    (etc / "lists" / "partial").mkdir(parents=True)
    (etc / "sources.list").write_text(f"deb [trusted=yes] copy:{folder} ./\n")
    (etc / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{etc}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{etc}/lists";\nDir::State::status "/dev/null";\n'
        'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nAPT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(etc / "apt.conf"))

    def fill(**packages):
        index = ""
        for name, raw in packages.items():
            (folder / f"{name}.deb").write_bytes(raw)
            index += f"Package: {name}\nVersion: 1.0\nArchitecture: all\nFilename: ./{name}.deb\n"
            index += f"Size: {len(raw)}\nSHA256: {hashlib.sha256(raw).hexdigest()}\n\n"
        (folder / "Packages").write_text(index)
        digest = hashlib.sha256(index.encode()).hexdigest()
        (folder / "Release").write_text(f"SHA256:\n {digest} {len(index)} Packages\n")
        return folder

    return fill


@pytest.fixture
def source(tmp_path):
    raw = {
        "kind": "debian",
        "package": "x",
        "extractor": "handbook",
        "files": ["usr/share/doc/x/nb/*.html"],
        "licence": "CC0-1.0",
        "licence_class": "public-domain",
        "origin": "Debian package x",
        "note": "made for a test",
    }
    return languages.source("x", raw, tmp_path)


@needs_apt
def test_a_package_is_found_fetched_and_read_without_lists_of_the_system(
    repository, source, own_store
):
    raw = package(FILES)
    folder = repository(x=raw)
    pinned = debian.reach(source, Session(own_store, Silent()))
    assert (pinned.version, pinned.sha256) == ("1.0", hashlib.sha256(raw).hexdigest())
    (found,) = debian.documents(pinned, languages.get("nb"), Session(own_store, Silent()))
    assert found.text == "Havet er stort, og det er kaldt i dag."
    assert found.id == "x/usr/share/doc/x/nb/a.html/0000"
    shutil.rmtree(folder)  # now it comes from the store
    assert list(debian.documents(pinned, languages.get("nb"), Session(own_store, Silent()))) == [
        found
    ]


@needs_apt
def test_a_package_that_is_not_there_is_told(repository, source, own_store):
    repository(other=package(FILES))
    with pytest.raises(FetchFailed, match=r"\bx\b"):
        debian.reach(source, Session(own_store, Silent()))


@needs_apt
def test_a_package_that_changed_is_refused(repository, source, own_store):
    folder = repository(x=package(FILES))
    pinned = debian.reach(source, Session(own_store, Silent()))
    (folder / "x.deb").write_bytes(package({**FILES, "./more": b"1"}))
    with pytest.raises(FetchFailed, match=r"\bx\b"):
        list(debian.documents(pinned, languages.get("nb"), Session(own_store, Silent())))


@needs_apt
def test_files_that_are_not_there_are_told(repository, source, own_store):
    repository(x=package({"./other": b""}))
    pinned = debian.reach(source, Session(own_store, Silent()))
    with pytest.raises(BadText, match="usr/share/doc/x/nb"):
        list(debian.documents(pinned, languages.get("nb"), Session(own_store, Silent())))


def test_without_apt_another_source_is_named(source, own_store, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingTool) as caught:
        debian.reach(source, Session(own_store, Silent()))
    assert "--source" in caught.value.fix


def test_two_first_builds_fetch_the_lists_once(source, own_store, monkeypatch):
    fetched = []

    def update(folder):
        fetched.append(folder)
        time.sleep(0.2)  # without a lock the other would come in now
        folder.mkdir(parents=True)

    monkeypatch.setattr(debian, "_update", update)
    monkeypatch.setattr(debian, "_show", lambda name, lists: {})

    def reach():
        with pytest.raises(FetchFailed, match=r"\bx\b"):
            debian.reach(source, Session(own_store, Silent()))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(reach) for _ in range(2)]:
            done.result()
    assert len(fetched) == 1


@needs_apt
def test_lists_that_cannot_be_fetched_are_told(repository, source, own_store):
    with pytest.raises(FetchFailed) as caught:
        debian.reach(source, Session(own_store, Silent()))
    assert caught.value.fix == "sudo apt-get update"
    assert not (own_store.root / "apt").exists()
