import logging
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.data import ingest
from dataflex_tools.data.corpus import open_corpus, overlap
from dataflex_tools.data.records import sample_id
from dataflex_tools.data.sources import SourceSpec
from tests.data.builders import alpaca, chat, write_jsonl


def spec(path, **settings):
    return SourceSpec(path=str(path), **settings)


def test_rows_keep_the_order_of_sources_and_ids_are_content_hashes(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [alpaca(0), alpaca(1)])
    b = write_jsonl(tmp_path / "b.jsonl", [chat("Say 1.", "It is 1."), {**chat("x", "y"), "url": "u"}])
    corpus = open_corpus([spec(a), spec(b, domain="web")], tmp_path / "cache", group="domain")
    assert len(corpus) == 4
    assert [corpus.text(row) for row in (1, 2)] == ["user: Say 1.\nassistant: It is 1."] * 2
    assert corpus.ids_N16.shape == (4, 16)
    assert all(bytes(corpus.ids_N16[row]) == sample_id(corpus.conversation(row)) for row in range(4))
    assert bytes(corpus.ids_N16[1]) == bytes(corpus.ids_N16[2])  # the same sample, however it was written
    assert corpus.fingerprint == ids_digest(corpus.ids_N16)
    assert corpus.group_names == ("a", "web")
    assert corpus.group_N.dtype == np.int32
    assert corpus.group_N.tolist() == [0, 0, 1, 1]
    assert corpus.place(3) == f"{b} row 2"
    assert [info["rows"] for info in corpus.sources_info()] == [2, 2]
    assert corpus.sources_info()[1].keys() == {"path", "domain", "form", "rows", "sha256"}


def test_groups_come_from_the_column_then_the_domain_then_the_file_name(tmp_path):
    rows = [{**alpaca(i), "topic": topic} for i, topic in enumerate(["law", None, "art", "law", 7])]
    a = write_jsonl(tmp_path / "a.jsonl", rows)
    pool = open_corpus([spec(a, domain_column="topic")], tmp_path / "cache", group="domain")
    assert [pool.group_names[code] for code in pool.group_N] == ["law", "a", "art", "law", "7"]
    target = open_corpus([spec(a, domain="t", subtask_column="topic")], tmp_path / "cache", group="subtask")
    assert [target.group_names[code] for code in target.group_N] == ["law", "t", "art", "law", "7"]
    by_domain = open_corpus([spec(a, domain="t", subtask_column="topic")], tmp_path / "cache", group="domain")
    assert by_domain.group_names == ("t",)


def test_a_dotted_column_is_a_field_inside_a_column_unless_a_column_is_called_so(tmp_path):
    rows = [
        {**alpaca(0), "meta": {"set": {"name": "law"}}},
        {**alpaca(1), "meta": {"set": None}},
        {**alpaca(2), "meta": "x"},
    ]
    a = write_jsonl(tmp_path / "a.jsonl", [*rows, {**alpaca(3), "meta.set.name": "art"}])
    pool = open_corpus([spec(a, domain_column="meta.set.name")], tmp_path / "cache", group="domain")
    assert [pool.group_names[code] for code in pool.group_N] == ["law", "a", "a", "art"]
    with pytest.raises(DataError, match="no row has the column 'meta.set.nam'"):
        open_corpus([spec(a, domain_column="meta.set.nam")], tmp_path / "cache", group="domain")


def test_a_source_is_read_once_until_its_bytes_or_settings_change(tmp_path, monkeypatch):
    a = write_jsonl(tmp_path / "a.jsonl", [alpaca(0), alpaca(1)])
    first = open_corpus([spec(a)], tmp_path / "cache", group="domain")
    reads = []
    real = ingest.to_conversation
    monkeypatch.setattr(ingest, "to_conversation", lambda *args, **kw: reads.append(1) or real(*args, **kw))
    again = open_corpus([spec(a, domain="other")], tmp_path / "cache", group="domain")
    assert (reads, again.fingerprint, again.group_names) == ([], first.fingerprint, ("other",))
    assert again.reports[0].num_rows == 2
    open_corpus([spec(a, form="alpaca")], tmp_path / "cache", group="domain")
    write_jsonl(a, [alpaca(0), alpaca(2)])
    open_corpus([spec(a)], tmp_path / "cache", group="domain")
    assert len(reads) == 4


def test_a_killed_read_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_ROWS", 2)
    a = write_jsonl(tmp_path / "a.jsonl", [alpaca(0), alpaca(1), alpaca(2), {"x": 1}])
    with pytest.raises(DataError, match=r"row 4.* fit no form"):
        open_corpus([spec(a)], tmp_path / "cache", group="domain")
    assert not list((tmp_path / "cache" / "corpus").glob("*.arrow"))


def test_skipped_rows_and_duplicates_are_counted(tmp_path, caplog):
    a = write_jsonl(tmp_path / "a.jsonl", [alpaca(0), {"instruction": "a", "output": ""}, alpaca(0), alpaca(1)])
    with a.open("a") as handle:
        handle.write("{broken\n")
    with caplog.at_level(logging.INFO, logger="flextools"):
        corpus = open_corpus([spec(a, skip_bad=True)], tmp_path / "cache", group="domain")
    report = corpus.reports[0]
    assert (len(corpus), report.num_rows, report.num_bad, report.num_duplicates) == (3, 3, 2, 1)
    assert report.form == "alpaca"
    assert "2 bad rows left out, first: row 2: the record has no answer" in caplog.text
    assert corpus.place(2) == f"{a} row 4"
    with pytest.raises(DataError, match=r"row 2: the record has no answer: output is empty; .* out with --skip-bad"):
        open_corpus([spec(a)], tmp_path / "cache", group="domain")


def test_text_that_cannot_be_stored_is_a_bad_row_wherever_it_stands(tmp_path):
    rows = [{"text": "a", "d": "\ud800"}, {"text": "\ud800", "d": "b"}, {"text": "c", "d": "b"}]
    a = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"row 1: column 'd' holds text that cannot be stored"):
        open_corpus([spec(a, domain_column="d")], tmp_path / "cache", group="domain")
    corpus = open_corpus([spec(a, domain_column="d", skip_bad=True)], tmp_path / "cache", group="domain")
    assert (len(corpus), corpus.group_names, corpus.reports[0].num_bad) == (1, ("b",), 2)


def test_mixed_forms_are_an_error_that_shows_the_first_row_of_each(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [alpaca(0), alpaca(1), {"text": "x"}])
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"row 1 is alpaca, row 3 is text \(text\)"):
            open_corpus([spec(a, skip_bad=skip_bad)], tmp_path / "cache", group="domain")


def test_wrong_input_is_named(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [alpaca(0)])
    cases = [
        (spec(a, columns={"instruction": "instrction"}), "did you mean 'instruction'"),
        (spec(a, columns={"system": "sys"}), "no row has the column 'sys'"),
        (spec(a, domain_column="domian"), "no row has the column 'domian'"),
        (
            spec(write_jsonl(tmp_path / "b.jsonl", [{"text": ""}]), skip_bad=True),
            "all 1 rows are bad, row 1: the record",
        ),
    ]
    (tmp_path / "c.jsonl").write_text("\n\n")
    cases.append((spec(tmp_path / "c.jsonl"), "no record that can be used"))
    for source, message in cases:
        with pytest.raises(DataError, match=message):
            open_corpus([source], tmp_path / "cache", group="domain")
    with pytest.raises(ConfigError, match="no source given"):
        open_corpus([], tmp_path / "cache", group="domain")


@pytest.mark.parametrize("ending", ["arrow", "json", "arrow.sha256", "json.sha256"])
def test_a_damaged_cache_file_is_made_anew_and_said(tmp_path, ending, caplog):
    a = write_jsonl(tmp_path / "a.jsonl", [alpaca(0), alpaca(1)])
    before = open_corpus([spec(a)], tmp_path / "cache", group="domain")
    file = next((tmp_path / "cache" / "corpus").glob(f"*.{ending}"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    after = open_corpus([spec(a)], tmp_path / "cache", group="domain")
    assert (after.fingerprint, after.text(1), after.reports) == (before.fingerprint, before.text(1), before.reports)
    assert f"made anew (first: {tmp_path / 'cache' / 'corpus'}" in caplog.text
    caplog.clear()
    open_corpus([spec(a)], tmp_path / "cache", group="domain")
    assert "made anew" not in caplog.text


def test_a_text_as_the_name_of_a_domain_is_refused(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [{**alpaca(0), "kind": "x" * 5000}])
    with pytest.raises(DataError, match="a domain of the data has a name of 5,000 characters.*domain_column"):
        open_corpus([spec(a, domain_column="kind")], tmp_path / "cache", group="domain")


def test_overlap_finds_the_pool_rows_of_the_target_and_without_drops_them(tmp_path):
    pool_file = write_jsonl(tmp_path / "p.jsonl", [alpaca(i) for i in (0, 1, 2, 1)])
    target_file = write_jsonl(tmp_path / "t.jsonl", [chat("Say 1.", "It is 1."), chat("a", "b")])
    pool = open_corpus([spec(pool_file)], tmp_path / "cache", group="domain")
    target = open_corpus([spec(target_file)], tmp_path / "cache", group="subtask")
    rows = overlap(pool, target)
    assert (rows.tolist(), rows.dtype) == ([1, 3], np.int64)
    rest = pool.without(rows)
    assert [rest.text(row) for row in range(len(rest))] == [pool.text(0), pool.text(2)]
    np.testing.assert_array_equal(rest.ids_N16, pool.ids_N16[[0, 2]])
    assert rest.fingerprint != pool.fingerprint
    assert len(rest.without([0])) == 1
    assert rest.place(1) == f"{pool_file} row 3"


def test_reading_takes_no_memory_that_grows_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_ROWS", 256)

    def peak(count):
        file = write_jsonl(tmp_path / f"{count}.jsonl", [{"text": f"{i} " + "x" * 2000} for i in range(count)])
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        corpus = open_corpus([spec(file)], tmp_path / "cache", group="domain")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(corpus) == count
        return most, pa.total_allocated_bytes() - before

    small, _ = peak(1000)
    large, arrow = peak(4000)  # 8 MB of text
    assert large < 1.5 * small
    assert arrow < 1_000_000  # the text is mapped, not copied
