"""docs/methods has a page for each method, and its settings table says what the code says."""

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

from dataflex_tools.methods import METHODS
from dataflex_tools.methods.base import Mixer, Selector

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "methods"
HEADINGS = ("When it helps and when it does not", "Signals and cost", "Settings", "Example",
            "Departs from the paper and public code")  # fmt: skip


def settings(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, default) of every setting, those of nested settings included."""
    for item in fields(cls):
        value = item.default if item.default is not MISSING else item.default_factory()
        if is_dataclass(value):
            yield from settings(type(value), f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_page_tells_all_settings_with_their_defaults(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text(encoding="ascii")
    table = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \|", text, flags=re.MULTILINE)
    assert table == list(settings(METHODS.find(name).Settings))
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == list(HEADINGS)
    assert text.count("\n") < 60


def test_both_tables_of_methods_list_each_once_with_a_link() -> None:
    for page, folder in ((PAGES / "README.md", ""), (ROOT / "README.md", "docs/methods/")):
        parts = re.split(r"^#+ Mixtures$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for part, kind in zip(parts, (Selector, Mixer), strict=True):
            found = re.findall(r"^\| \[(\w+)\]\((.+?)\) \|", part, flags=re.MULTILINE)
            names = [name for name in METHODS.names() if issubclass(METHODS.find(name), kind)]
            assert sorted(found) == [(name, f"{folder}{name}.md") for name in names]


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES.glob("*.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="ascii")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
