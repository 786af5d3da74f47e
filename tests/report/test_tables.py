import pytest

from dataflex_tools.report.tables import table

NASTY = "[red]a[/red] [/x] :smile: \x1b[31m\u202e\r"


def test_cells_are_shown_as_they_are_not_as_markup_or_control_characters() -> None:
    text = table(["name", NASTY], [[NASTY, 1]])
    assert text.count("[red]a[/red] [/x] :smile: \\x1b[31m\\u202e\\r") == 2
    assert not {"\x1b", "\u202e", "\r"} & set(text)


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "a\x85b"])
def test_a_name_takes_one_line(name: str) -> None:
    assert len(table(["name"], [[name]]).splitlines()) == len(table(["name"], [["a"]]).splitlines())
