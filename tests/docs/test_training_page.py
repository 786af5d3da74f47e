"""The page on training names every field that `extra` takes."""

from pathlib import Path

from dataflex_tools.train import extra

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_every_field_that_is_followed_is_on_the_page() -> None:
    for table, told in ((extra.DECISIVE, "must have the same"), (extra.FREE, "may differ")):
        (row,) = [line for line in PAGE.splitlines() if line.startswith("|") and told in line]
        assert {name for name in table if f"`{name}`" not in row} == set()
