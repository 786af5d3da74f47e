"""Mixtures described and compared: hand numbers, what is said when weights, data or tokenizers differ."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.mixing import Mixture
from dataflex_tools.report.compare import compare
from dataflex_tools.report.inspect import describe, summarise
from dataflex_tools.report.mixtures import are_mixtures, compare_mixtures, compare_mixtures_text
from tests.artifact.examples import measure, mix, mixture_facts, online_mixture, plan, random_ids
from tests.helpers import FLOAT64


def constant(folder: Path, weights: dict[str, float], **changed: object) -> Path:
    mix(folder, Mixture.constant(tuple(weights), np.array(list(weights.values()))), **changed)
    return folder


def test_each_domain_has_its_weight_its_natural_share_and_their_ratio(tmp_path: Path) -> None:
    constant(tmp_path / "m", {"web": 0.5, "code": 0.5, "maths": 0.0})
    web, code, maths = summarise(tmp_path / "m")["mixture"]["domains"]
    # 600, 200 and 100 of 900 tokens
    assert web == {"domain": "web", "natural": 600 / 900, "weight": 0.5, "ratio": pytest.approx(0.75)}
    assert code["ratio"] == pytest.approx(2.25)
    assert (maths["weight"], maths["ratio"]) == (0, 0)


def test_a_natural_share_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    constant(tmp_path / "m", {"web": 1.0, "law": 1.0})
    facts = summarise(tmp_path / "m")["mixture"]
    assert facts["natural_of"] is None
    assert [entry["natural"] for entry in facts["domains"]] == [None, None]
    assert "natural" in describe(tmp_path / "m")


def test_a_description_holds_origin_entropy_warnings_and_the_trajectory(tmp_path: Path) -> None:
    given = online_mixture()
    mix(tmp_path / "doremi", given)
    text = describe(tmp_path / "doremi")
    for words in ("mixture doremi", "from       ../models/proxy-00", "natural (tokens)", "optimizer steps 0 to 60", "nats"):
        assert words in text
    trajectory = summarise(tmp_path / "doremi")["mixture"]["trajectory"]
    assert (trajectory["states"], trajectory["first_step"], trajectory["last_step"]) == (7, 0, 60)
    weights = [state.weight_K.tolist() for state in given.trajectory]
    for code, entry in enumerate(trajectory["domains"]):
        column = [row[code] for row in weights]
        assert (entry["first"], entry["last"]) == (column[0], column[-1])
        np.testing.assert_allclose(entry["mean"], sum(column) / len(column), **FLOAT64)
    constant(tmp_path / "steep", {"web": 0.97, "code": 0.03})
    assert "warning    near one-hot: 'web' has 97.0%" in describe(tmp_path / "steep")
    assert summarise(tmp_path / "steep")["mixture"]["trajectory"] is None


def test_mixtures_are_described_as_json(tmp_path: Path) -> None:
    mix(tmp_path / "odm", online_mixture(schedule=True))
    constant(tmp_path / "alone", {"web": 1.0})
    for name in ("odm", "alone"):
        json.dumps(summarise(tmp_path / name), allow_nan=False)
        describe(tmp_path / name)
    assert "7 entries, the last from optimizer step 60 on" in describe(tmp_path / "odm")


def test_many_domains_are_cut_on_the_terminal_only(tmp_path: Path) -> None:
    constant(tmp_path / "m", {f"domain-{number}": 1.0 for number in range(50)})
    assert "and 10 more" in describe(tmp_path / "m")
    assert len(summarise(tmp_path / "m")["mixture"]["domains"]) == 50


def test_distances_are_those_of_the_loop_over_domains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.dirichlet(np.ones(5)).tolist() for name in "abc"}
    names = [f"d{number}" for number in range(5)]
    folders = [constant(tmp_path / name, dict(zip(names, row, strict=True))) for name, row in weights.items()]
    result = compare_mixtures(folders)
    assert [pair["mixtures"] for pair in result["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    for pair in result["pairs"]:
        both = list(zip(*(weights[name] for name in pair["mixtures"]), strict=True))
        np.testing.assert_allclose(pair["total_variation"], sum(abs(x - y) for x, y in both) / 2, **FLOAT64)
        np.testing.assert_allclose(pair["kl"], sum(x * math.log(x / y) for x, y in both), **FLOAT64)
        np.testing.assert_allclose(pair["kl_back"], sum(y * math.log(y / x) for x, y in both), **FLOAT64)
    assert result["domains"][2]["b"] == pytest.approx(weights["b"][2])


def test_a_domain_without_weight_makes_a_divergence_infinite_and_nothing_else(tmp_path: Path) -> None:
    a, b = constant(tmp_path / "a", {"web": 0.5, "code": 0.5}), constant(tmp_path / "b", {"web": 1.0, "code": 0.0})
    (pair,) = compare_mixtures([a, b])["pairs"]
    assert (pair["total_variation"], pair["kl"]) == (0.5, None)
    assert pair["kl_back"] == pytest.approx(math.log(2))
    assert "inf" in compare_mixtures_text(compare_mixtures([a, b]))
    json.dumps(compare_mixtures([a, b]), allow_nan=False)


def test_what_makes_weights_not_comparable_is_said(tmp_path: Path) -> None:
    a = constant(tmp_path / "a", {"web": 0.5, "code": 0.5})
    other = {**mixture_facts()["corpus"], "fingerprint": "99" * 32}
    tokenizer = {"sha256": "00" * 32, "template": "plain"}
    b = constant(tmp_path / "b", {"code": 0.25, "law": 0.75}, corpus=other, tokenizer=tokenizer)
    mix(tmp_path / "c", online_mixture(schedule=True))
    result = compare_mixtures([a, b, tmp_path / "c"])
    notes = "\n".join(result["notes"])
    for words in ("a does not know law, maths", "b does not know maths, web", "c changes", "tokenizers", "different data"):
        assert words in notes
    assert [entry["domain"] for entry in result["domains"]] == ["web", "code", "law", "maths"]
    assert result["pairs"][0]["total_variation"] == pytest.approx(0.75)
    assert compare_mixtures([a, constant(tmp_path / "d", {"web": 0.1, "code": 0.9})])["notes"] == []


def test_comparing_a_mixture_with_something_else_is_refused(tmp_path: Path) -> None:
    constant(tmp_path / "m", {"web": 1.0})
    plan(tmp_path / "less")
    measure(tmp_path / "signal", random_ids(4))
    for other in ("less", "signal"):
        with pytest.raises(ConfigError, match=rf"m mixes domains and .*{other} does not; compare artifacts of one kind"):
            are_mixtures([tmp_path / "m", tmp_path / other])
    assert are_mixtures([tmp_path / "m", tmp_path / "m"])
    assert not are_mixtures([tmp_path / "less", tmp_path / "signal"])
    with pytest.raises(ArtifactError, match="is a mixture, wanted a selection"):
        compare([tmp_path / "less", tmp_path / "m"])
    with pytest.raises(ConfigError, match="found 1 artifacts"):
        compare_mixtures([tmp_path / "m"])
    with pytest.raises(ConfigError, match="name an artifact twice"):
        compare_mixtures([tmp_path / "m", tmp_path / "m"])
