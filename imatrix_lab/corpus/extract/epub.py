"""Books (.epub): a ZIP archive of XHTML."""

import io
import zipfile
import zlib
from collections.abc import Iterator

from imatrix_lab.corpus.documents import decode, gathered
from imatrix_lab.corpus.extract.markup import HTML, paragraphs
from imatrix_lab.errors import BadText

CHAPTER_BYTES_MAX = 16 << 20
BOOK_BYTES_MAX = 256 << 20


def extract(name: str, raw: bytes) -> Iterator[str]:
    """Yield the chapters in the order of their file names, long ones cut after a page."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as book:
            chapters = [m for m in book.infolist() if m.filename.endswith((".xhtml", ".html"))]
            sizes = [m.file_size for m in chapters]
            if sum(sizes) > BOOK_BYTES_MAX or max(sizes, default=0) > CHAPTER_BYTES_MAX:
                raise BadText("this book unpacks to more than a book can hold", where=name)
            for chapter in sorted(chapters, key=lambda m: m.filename):
                text = decode(book.read(chapter), f"{name}: {chapter.filename}")
                yield from gathered(paragraphs(text, HTML))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise BadText(f"this book cannot be unpacked: {error}", where=name) from error
