"""Unknown keys and wrong values are found, named, and answered with a hint."""

from dataclasses import dataclass, field

import pytest

from dataflex_tools.core.config import apply_overrides, differences, from_mapping, load_yaml, require, to_mapping
from dataflex_tools.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    seed: int = 0
    rate: float = 0.1

    def __post_init__(self):
        require(self.rate > 0, f"rate is {self.rate}, wanted a positive number")


@dataclass(frozen=True, kw_only=True)
class Outer:
    path: str
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None


@dataclass(frozen=True, kw_only=True)
class Warm:
    """Its inner settings begin at other values than the inner class does."""

    inner: Inner = field(default_factory=lambda: Inner(seed=7))
    deep: Outer = field(default_factory=lambda: Outer(path="here", inner=Inner(rate=0.5)))


def test_what_is_left_out_of_a_part_is_the_outer_default():
    assert from_mapping(Warm, {"inner": {}, "deep": {}}, where="stage") == Warm()
    value = from_mapping(Warm, {"inner": {"rate": 0.2}, "deep": {"inner": {"seed": 1}}}, where="stage")
    assert value.inner == Inner(seed=7, rate=0.2)
    assert value.deep == Outer(path="here", inner=Inner(seed=1, rate=0.5))


def test_what_is_written_out_reads_back_equal():
    value = from_mapping(Outer, {"path": "x", "inner": {"rate": "2e-5"}, "many": [{"seed": 3}]}, where="stage")
    assert value.inner.rate == 2e-5
    assert from_mapping(Outer, to_mapping(value), where="stage") == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "x", "iner": {}}, r"stage has no setting 'iner'; did you mean 'inner'\?"),
        ({"path": "x", "inner": {"sede": 1}}, r"stage: inner has no setting 'sede'; did you mean 'seed'\?"),
        ({"path": "x", "many": [{"sede": 1}]}, r"stage: many has no setting 'sede'"),
        ({"path": "x", "maybe": {"sede": 1}}, r"stage: maybe has no setting 'sede'"),
        ({}, "stage: path is missing"),
        ({"path": "x", "inner": {"seed": "many"}}, r"stage: inner.seed: .*found 'many'"),
        ({"path": "x", "inner": {"rate": -1}}, r"^rate is -1.0, wanted a positive number$"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_mapping(Outer, given, where="stage")
    assert "\n" not in str(caught.value)


def test_set_reaches_any_key_and_leaves_the_original_alone():
    config = {"a": {"b": 1}}
    assert apply_overrides(config, ["a.b=2", "a.c.d=[1, x]", "e=null"]) == {
        "a": {"b": 2, "c": {"d": [1, "x"]}},
        "e": None,
    }
    assert config == {"a": {"b": 1}}


@pytest.mark.parametrize("item", ["a.b", "=3", "a.b.c=1"])
def test_a_malformed_set_is_an_error(item):
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"a": {"b": 1}}, [item])


@pytest.mark.parametrize(
    ("text", "message"), [(None, "does not exist"), ("a: [", "is not YAML: line 1, column 5"), ("- 1", "holds list")]
)
def test_a_config_file_that_is_not_a_mapping_is_an_error(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_yaml(path)


def test_differences_name_each_value_and_show_no_raw_mappings() -> None:
    before = {"a": None, "data": [{"path": "x", "form": "auto"}], "n": {"full": False}, "same": {"b": 1}, "more": [{"p": 1}]}
    now = {"a": {"f": 0.5}, "data": [{"path": "y", "form": "auto"}], "n": {"full": True}, "same": {"b": 1},
           "more": [{"p": 1}, {"p": 2}]}  # fmt: skip
    assert differences(before, now) == [
        "a.f: not set, now 0.5", "data.0.path: x, now y", "more: 1 entries, now 2 entries", "n.full: False, now True",
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["proxy", "warmup"])
def test_an_error_of_an_inner_setting_has_its_whole_name(place: str) -> None:
    from dataflex_tools.stages.config import ScoreConfig

    values = {"method": "odm", "model": {"path": "m"}, "data": [{"path": "d"}], "out": "o"}
    with pytest.raises(ConfigError, match=rf"^{place}\.training\.learning_rate is 0"):
        from_mapping(ScoreConfig, {**values, place: {"training": {"learning_rate": 0}}}, where="score")
