"""Pictures of mixtures: the same bytes for the same mixture, every domain named, labels that do not touch."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.mixing import MixState, Mixture
from dataflex_tools.report.picture import draw_mixture, spread
from tests.artifact.examples import mix, online_mixture, plan
from tests.helpers import FLOAT64

PNG = b"\x89PNG\r\n"


def wide(count: int, *, updates: int = 30) -> Mixture:
    weight_SK = np.random.default_rng(0).dirichlet(np.ones(count), updates)
    trajectory = tuple(MixState(s, weight_K, weight_K) for s, weight_K in enumerate(weight_SK))
    return Mixture.constant([f"domain {number}" for number in range(count)], weight_SK[-1], trajectory=trajectory)


def mixtures() -> dict[str, Mixture]:
    return {
        "trajectory": online_mixture(),
        "schedule": online_mixture(schedule=True),
        "constant": Mixture.constant(("web", "code"), np.array([0.999999, 0.000001])),
        "one": Mixture.constant(("only",), np.ones(1)),
        "many": wide(25),
        "long": wide(3, updates=5000),
        "odd names": Mixture.constant(("$a_b$", "c^2 \\ d", "x" * 80), np.ones(3)),
    }


@pytest.mark.parametrize("name", mixtures())
def test_every_shape_of_mixture_is_drawn(tmp_path: Path, name: str) -> None:
    mix(tmp_path / "m", mixtures()[name])
    draw_mixture(tmp_path / "m", tmp_path / "new" / "weights.png")
    assert (tmp_path / "new" / "weights.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_mixture_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    import matplotlib

    mix(tmp_path / "m")
    draw_mixture(tmp_path / "m", tmp_path / f"a.{ending}")
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):  # a style of the user's own changes nothing
        draw_mixture(tmp_path / "m", tmp_path / f"b.{ending}")
    first = (tmp_path / f"a.{ending}").read_bytes()
    assert first == (tmp_path / f"b.{ending}").read_bytes()
    assert b"dc:date" not in first


def test_an_svg_names_every_drawn_domain_its_axes_and_its_title(tmp_path: Path) -> None:
    mix(tmp_path / "m", wide(25))
    draw_mixture(tmp_path / "m", tmp_path / "weights.svg")
    text = (tmp_path / "weights.svg").read_text()
    largest = np.argsort(-wide(25).weight_SK[-1])[:9]
    # each text stands in a comment beside its outline
    for words in (*(f"domain {code}" for code in largest), "16 others", "optimizer step", "share of the training"):
        assert f"<!-- {words} -->" in text
    assert "<!-- doremi: weight of each domain -->" in text


def test_drawing_leaves_the_users_settings_alone(tmp_path: Path) -> None:
    import matplotlib

    mix(tmp_path / "m")
    with matplotlib.rc_context({"font.size": 20}):
        before = dict(matplotlib.rcParams)
        draw_mixture(tmp_path / "m", tmp_path / "weights.svg")
        assert dict(matplotlib.rcParams) == before


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix(tmp_path / "m")
    plan(tmp_path / "less")
    with pytest.raises(ConfigError, match=r"ends in '\.pdf', wanted \.png or \.svg"):
        draw_mixture(tmp_path / "m", tmp_path / "weights.pdf")
    with pytest.raises(ConfigError, match="less is no mixture"):
        draw_mixture(tmp_path / "less", tmp_path / "weights.png")
    with pytest.raises(ConfigError, match="lies in the artifact"):
        draw_mixture(tmp_path / "m", tmp_path / "m" / "weights.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'flextools\[plot\]'"):
        draw_mixture(tmp_path / "m", tmp_path / "weights.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["less", "m"]


def test_labels_keep_their_order_and_distance() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 9):
        for _ in range(50):
            wanted_K = rng.random(count) ** 3
            placed_K = spread(wanted_K, gap=0.1)
            ordered = placed_K[np.argsort(wanted_K, kind="stable")]
            assert all(high - low >= 0.1 - 1e-12 for low, high in pairwise(ordered))
            assert ordered[0] >= 0
            assert ordered[-1] <= 1 + 1e-12
    np.testing.assert_allclose(spread(np.array([0.9, 0.1, 0.5]), gap=0.1), [0.9, 0.1, 0.5], **FLOAT64)  # far apart
    np.testing.assert_allclose(spread(np.array([0.5, 0.5, 0.5]), gap=0.1), [0.4, 0.5, 0.6], **FLOAT64)
    assert np.diff(spread(np.zeros(30), gap=0.1)).min() > 0.03  # too many: as far apart as the height allows
