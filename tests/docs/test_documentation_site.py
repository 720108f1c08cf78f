"""The site that MkDocs builds from docs/: strict, complete, with GitHub's anchors, and nothing from elsewhere."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from markdown_blocks import ROOT, documents

from decoding_server.features.parameters import tables
from decoding_server.features.strategy_notes import read_notes

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """What a page loads, and how many tables it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tables = 0
        self.pictures_without_text = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tables += tag == "table"
        self.pictures_without_text += tag == "img" and not given.get("alt")
        if tag in LOADED and given.get("rel") != "canonical":
            self.loads.append(given.get(LOADED[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
        yield folder
    finally:
        config.plugins.on_shutdown()


def page_of(document: str, site: Path) -> Path:
    name = Path(document).relative_to("docs").with_suffix("")
    return site / (name.parent if name.name == "index" else name) / "index.html"


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        outside = [url for url in Page(page.read_text(encoding="utf-8")).loads if re.match(r"(https?:)?//", url)]
        assert outside == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize("document", [one for one in documents() if one.startswith("docs/")])
def test_tables_and_pictures_come_through(document: str, site: Path) -> None:
    """A table that Python-Markdown doesn't take for one, GitHub may, and the other way round."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", (ROOT / document).read_text(encoding="utf-8"))
    page = Page(page_of(document, site).read_text(encoding="utf-8"))
    written = len(re.findall(r"(?m)^\|(?: ?:?-+:? ?\|)+$", text))
    assert page.tables >= written if ":::" in text else page.tables == written
    assert page.pictures_without_text == 0


def test_the_python_reference_is_made_from_the_code(site: Path) -> None:
    page = page_of("docs/python-api.md", site).read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs/python-api.md").read_text(encoding="utf-8"), re.MULTILINE):
        assert f'id="{name}"' in page, name
    assert "strategies.search.context.SearchContext.extend" in page


@pytest.mark.parametrize("document", documents())
def test_links_lead_somewhere(document: str) -> None:
    """On GitHub too, where README and the files outside of docs/ are read."""
    folder = (ROOT / document).parent
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", (ROOT / document).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else ROOT / document
        assert file.is_file() or (file.is_dir() and not document.startswith("docs/")), target
        if anchor:
            assert anchor in anchors(file), target
        # MkDocs knows the files of docs/ alone.
        assert not document.startswith("docs/") or file.resolve().is_relative_to(ROOT / "docs"), target


def anchors(file: Path) -> set[str]:
    """GitHub's anchors of a document's headings."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", file.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_navigation_or_left_out_on_purpose() -> None:
    class Loader(yaml.SafeLoader):
        """Reads MkDocs' own tags as nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    titles = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in config["nav"]]
    assert titles[1:4] == ["Quick start", "Concepts", "Strategies"]
    assert config["theme"]["font"] is False


def test_every_strategy_has_a_page_with_its_parameters() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/strategies").glob("*.md"))
    assert [name for name in tables() if pages.count(f"<!-- {name}:begin -->") != 1] == []
    for name, note in read_notes(ROOT / "docs/strategies.toml").items():
        page, _, anchor = note.page.partition("#")
        text = (ROOT / "docs/strategies" / page).read_text(encoding="utf-8")
        assert text.count(f"<!-- parameters-{name}:begin -->") == 1, name
        assert not anchor or anchor in anchors(ROOT / "docs/strategies" / page), note.page


def test_the_diagram_says_in_words_what_it_shows() -> None:
    root = ElementTree.parse(ROOT / "docs/request.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    for part in ("title", "desc"):
        found = root.find(f"svg:{part}", space)
        assert found is not None
        assert found.text
    assert "prefers-color-scheme: dark" in ElementTree.tostring(root, encoding="unicode")
    assert not re.search(r"(href|url\()\s*=?\s*['\"]?(https?:)?//", (ROOT / "docs/request.svg").read_text())
