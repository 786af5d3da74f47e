import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflex_tools.core.errors import DataError
from dataflex_tools.data import readers
from dataflex_tools.data.readers import READERS, read_csv, read_json, read_jsonl

ROWS = [{"prompt": f'a {i}, "q"\n\u00e9', "completion": f"b {i}"} for i in range(3000)]


def fail(number, message):
    raise AssertionError(f"row {number} {message}")


def write(path):
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=700)
    elif path.suffix == ".feather":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2500)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, ["prompt", "completion"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".json":
        path.write_text("\ufeff " + json.dumps(ROWS, indent=1), encoding="utf-8")
    else:
        path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", sorted(set(READERS) - {".txt"}))
def test_every_format_gives_the_same_records_in_order(tmp_path, ending):
    found = list(READERS[ending](write(tmp_path / f"x{ending}"), fail))
    assert [record for _, record in found] == ROWS
    step = 2 if ending in (".jsonl", ".ndjson") else 1  # a blank line between records counts as a line
    assert [number for number, _ in found] == list(range(1, step * len(ROWS) + 1, step))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30) | st.integers() | st.none(), max_size=3)),
    block=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
def test_a_json_array_reads_the_same_for_any_block_size(tmp_path, monkeypatch, values, block, indent, ascii_only):
    monkeypatch.setattr(readers, "_BLOCK", block + 2)
    path = tmp_path / "x.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    path.write_bytes(text)
    assert [record for _, record in read_json(path, fail)] == values


def test_a_text_file_is_one_record_as_it_is(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffa\r\n\n \u00e9\n".encode())
    assert list(READERS[".txt"](path, fail)) == [(1, {"text": "a\r\n\n \u00e9\n"})]


def test_json_with_one_object_per_line_is_read_as_lines(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert list(read_json(path, fail)) == [(1, {"text": "a"}), (2, {"text": "b"})]


BROKEN = [
    ("x.json", b'[{"a": 1}, {"a": "tru', "record 2 is cut off by the end of the file"),
    ("x.json", b'[{"a": 1} {"a": 2}]', "after record 1, wanted ',' or ']'"),
    ("x.json", b'[{"a": 1}', "the end of the file after record 1"),
    ("x.json", b'[{"a": 1}] [{"b": 1}]', "goes on after the JSON array"),
    ("x.json", b'[{"a": nope' + b" " * 100 + b"}]", "record 1 is not JSON"),
    ("x.json", b'[{"a": "\xff\xfe"}]', "not UTF-8"),
    ("x.json", b"hello", "neither a JSON array"),
    ("x.json", b'{\n "data": [1]\n}', "neither a JSON array"),
    ("x.jsonl", b"[1, 2]", "rename it to end in .json"),
    ("x.parquet", b"PAR0 no parquet at all", "cannot be read as Parquet"),
    ("x.arrow", b"no arrow at all, really not", "cannot be read as Arrow"),
    ("x.csv", b'a,b\n"1,2\n', "cannot be read as CSV"),
    ("x.csv", b"a,b\n1,\xff\n", "cannot be read as CSV"),
]


@pytest.mark.parametrize(("name", "data", "message"), BROKEN)
def test_a_file_that_is_not_what_its_ending_says_is_named(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(READERS[path.suffix](path, fail))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_lines_are_told_with_number_and_content_and_the_rest_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{broken\n\xff\n7\n{"text": "b"}\n' + b"[" * 100_000)
    told = []
    found = list(read_jsonl(path, lambda number, message: told.append((number, message))))
    assert found == [(1, {"text": "a"}), (5, {"text": "b"})]
    assert [number for number, _ in told] == [2, 3, 4, 6]
    assert "{broken" in told[0][1]


def test_csv_rows_of_another_width_are_bad_and_long_fields_are_not(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f"a,b\n1\n1,2,3\n{'x' * 200_000},2\n")
    told = []
    found = list(read_csv(path, lambda number, message: told.append((number, message))))
    assert [number for number, _ in found] == [3]
    assert told == [(1, "has 1 fields, the header has 2"), (2, "has 3 fields, the header has 2")]
