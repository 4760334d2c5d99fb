"""Both forms of a document hold the same text, and no text can break either."""

import base64
import html.parser
import re
import xml.etree.ElementTree as ElementTree

import pytest

from vgrout_jax.analysis import document
from vgrout_jax.analysis.document import Code, Figure, Heading, Items, Paragraph, Table

NASTY = "a<b>&amp;|\x00\x1b[1m\ud800`*_ \u2028 ]]> </pre></code> &#0; \"quoted\" 'too'"
VOID = {"meta", "img", "br", "hr"}


class Checker(html.parser.HTMLParser):
    """Elements that are closed in order, and every address that the page names."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(page):
    """The page is whole, is XML too, and names nothing outside of itself; returns its element tree."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == [] and not {"script", "link", "iframe", "base"} & set(checker.tags)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in checker.links)
    assert "url(" not in page and "@import" not in page
    assert not re.search(r"https?://", page)
    return ElementTree.fromstring(page.partition("\n")[2])


BLOCKS = [
    Heading(NASTY, 1),
    Paragraph(NASTY),
    Paragraph("strong " + NASTY, strong=True),
    Items((NASTY, "two")),
    Table(("name", NASTY), ((NASTY, "1"), ("b", NASTY)), NASTY),
    Figure("plot", b"png", b"<svg/>", NASTY),
    Code("```` four\n```\n" + NASTY, NASTY),
]


def test_any_text_gives_a_well_formed_page_without_links():
    tree = check_page(document.to_html(BLOCKS))
    shown = document.printable(NASTY)
    texts = ["".join(node.itertext()) for node in tree.iter()]
    assert texts.count(shown) >= 6
    [pre] = tree.iter("pre")
    assert "".join(pre.itertext()) == document.printable(BLOCKS[-1].text)
    [image] = tree.iter("img")
    assert base64.b64decode(image.get("src").partition(",")[2]) == b"<svg/>" and image.get("alt")


def test_text_that_no_page_may_hold_is_replaced_and_the_rest_kept():
    assert document.printable("a\x00b\x1bc\ud800d\te\r\nf\rg\x85h") == "a\ufffdb\ufffdc\ufffdd\te\nf\ng\ufffdh"
    assert document.printable("grüße 漢字 😀") == "grüße 漢字 😀"


def test_markdown_tables_keep_their_columns_whatever_is_in_them():
    text = document.to_markdown(BLOCKS)
    text.encode()  # no lone surrogate is left
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and all(len(re.split(r"(?<!\\)\|", row)) == 4 for row in rows)


@pytest.mark.parametrize("content", ["plain", "```\nfence\n```", "`````", "ends with `"])
def test_markdown_fences_are_longer_than_any_inside(content):
    lines = document.to_markdown([Code(content)]).rstrip("\n").splitlines()
    fence = lines[-1]
    assert lines[0] == f"{fence}text" and set(fence) == {"`"} and len(fence) >= 3
    assert "\n".join(lines[1:-1]) == content and fence not in content


def test_figures_are_named_beside_the_markdown():
    text = document.to_markdown([Figure("plot", b"", b"", "A caption")])
    assert "![A caption](plot.png)" in text and "(plot.svg)" in text


def test_terminal_text_is_aligned():
    text = document.to_text(
        [Heading("Title"), Table(("name", "n"), (("a", "10"), ("longer", "7")), "Caption"), BLOCKS[5]]
    )
    assert text == "Title\n\nCaption\nname     n\na       10\nlonger   7\n"
