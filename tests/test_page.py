import re
from html.parser import HTMLParser

from openqwen2vl.pages.chart import Series, line_chart
from openqwen2vl.pages.page import Page, Tile

NASTY = '<script>alert("1")</script> & more'
PNG = b"\x89PNG\r\n\x1a\n rest"


class Outline(HTMLParser):
    """Every tag with its attributes, and the text between tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def full_page() -> str:
    page = Page(NASTY, NASTY)
    page.section(NASTY, NASTY)
    page.table([NASTY, "n"], [[NASTY, "1"]])
    page.svg(line_chart([Series(NASTY, [(0, 1), (1, 2)])], NASTY, NASTY))
    page.tiles([Tile([(NASTY, "soft")], PNG, NASTY), Tile([("plain", "")], b"\xff\xd8 jpeg")])
    return page.html()


def test_nothing_given_as_text_becomes_markup():
    outline = Outline(full_page())
    assert "script" not in {tag for tag, _ in outline.tags}
    assert sum(NASTY in text for text in outline.text) >= 8


def test_a_page_asks_for_nothing_outside_itself():
    html = full_page()
    outline = Outline(html)
    sources = [attributes.get("src") for tag, attributes in outline.tags if tag == "img"]
    assert sources[0].startswith("data:image/png;base64,")
    assert sources[1].startswith("data:image/jpeg;base64,")
    assert not re.search(r"https?://|url\(|@import|<link|<script", html)


def test_a_page_suits_phones_and_dark_screens():
    outline = Outline(full_page())
    names = [attributes.get("name") for tag, attributes in outline.tags if tag == "meta"]
    assert "viewport" in names
    style = "".join(outline.text)
    assert "prefers-color-scheme: dark" in style
    assert "max-width: 36rem" in style


def test_sections_stand_in_the_order_they_were_added(tmp_path):
    page = Page("title")
    for name in ("first", "second", "third"):
        page.section(name)
    page.save(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html.index("first") < html.index("second") < html.index("third")
    assert html.startswith("<!doctype html>")


def test_a_table_has_a_cell_for_every_value():
    page = Page("title")
    page.table(["topic", "right"], [["colour", "12"], ["shape", "7"]])
    cells = re.findall(r"<t[dh]>([^<]*)</t[dh]>", page.html())
    assert cells == ["topic", "right", "colour", "12", "shape", "7"]
