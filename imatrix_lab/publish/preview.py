"""A card as a page, to be looked at before it is published."""

import base64
from html import escape

from markdown_it import MarkdownIt

from imatrix_lab.pipeline.card import picture

MARK = "<!-- a model card, shown by imatrix_lab -->"
"""How a page of ours begins."""
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{border:1px solid #ccc;padding:.3rem .6rem}img{max-width:100%}"
    "pre{background:#f4f4f4;padding:.6rem;overflow-x:auto}"
)


def page(card: str, svg: str) -> str:
    """Return one HTML file with a card and its picture; the front matter is shown as it is."""
    _, front, body = card.split("---\n", 2)
    # the Hub renders a card so too; what looks like HTML in it is text
    rendered = MarkdownIt("commonmark", {"html": False}).enable("table").render(body)
    data = base64.b64encode(svg.encode()).decode()
    rendered = rendered.replace(f'src="{picture.NAME}"', f'src="data:image/svg+xml;base64,{data}"')
    return (
        f'<!doctype html>\n{MARK}\n<html lang="en"><meta charset="utf-8"><title>Model card</title>'
        f"<style>{_STYLE}</style><pre>{escape(front)}</pre>\n{rendered}</html>\n"
    )
