"""From anyone's table of runs to a mixture that the other commands follow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from dataflex_tools.artifact.manifest import read_manifest, verify_artifact
from dataflex_tools.artifact.mixture import load_mixture
from dataflex_tools.cli import app
from dataflex_tools.core.errors import ArtifactError, ConfigError, DataError
from dataflex_tools.core.rng import generator
from dataflex_tools.methods.regmix import RegmixSettings, fit_runs
from dataflex_tools.ops.proposal import Known
from dataflex_tools.stages.config import build
from dataflex_tools.stages.fit import fit, given_values
from dataflex_tools.stages.pipeline import load_steps, run_steps
from dataflex_tools.stages.train import train
from tests import tiny

NAMES = ("count", "say", "both")
OPTIMUM = np.array([0.5, 0.2, 0.3])
SMALL = {"num_candidates": 450, "num_best": 16}
NATURAL = {"count": 0.2, "say": 0.6, "both": 0.2}


def runs(num: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures and two losses, which both are least at the optimum."""
    rng = np.random.default_rng(0)
    weight_SK = rng.dirichlet(np.ones(3), num)
    off_S = ((np.sqrt(weight_SK) - np.sqrt(OPTIMUM)) ** 2).sum(axis=1)
    return weight_SK, np.stack([2 + off_S, 1 + 2 * off_S], axis=1) + 0.01 * rng.normal(size=(num, 2))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weight_SK, metric_SM = runs()
    write(tmp_path / "a.csv", ("run", *NAMES), weight_SK)
    write(tmp_path / "b.csv", ("run", "code_loss", "talk_loss"), metric_SM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, names: tuple[str, ...], rows: np.ndarray) -> None:
    lines = [",".join((f"r{number}", *map(repr, row.tolist()))) for number, row in enumerate(rows)]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")


def fitted(**changes: Any) -> dict[str, Any]:
    values = {"ratios": "a.csv", "metrics": "b.csv", "natural": NATURAL, "settings": SMALL}
    return fit(build("fit", {**values, **changes}))


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_a_table_of_runs_is_fitted_as_the_method_does(folder: Path) -> None:
    weight_SK, metric_SM = runs()
    known = Known(NAMES, np.array([0.2, 0.6, 0.2]), None)
    rng = generator(0, "regmix", "fit")
    wanted = fit_runs(known, weight_SK, metric_SM.mean(axis=1), RegmixSettings(**SMALL), rng=rng)
    found = fitted()
    np.testing.assert_allclose(list(found["weights"].values()), wanted.weight_SK[0], atol=1e-6)
    np.testing.assert_allclose(list(found["weights"].values()), OPTIMUM, atol=0.1)
    assert found["facts"]["predicted"] < found["facts"]["predicted_natural"]
    assert found["facts"]["best_run"]["run"] == f"r{metric_SM.mean(axis=1).argmin()}"
    assert not list(folder.glob("artifacts"))


def test_the_target_is_the_mean_or_one_metric_or_weights(folder: Path) -> None:
    _, metric_SM = runs()
    for target, column_S in (
        ("mean", metric_SM.mean(axis=1)),
        ("talk_loss", metric_SM[:, 1]),
        ({"code_loss": 3.0, "talk_loss": 1.0}, metric_SM @ [0.75, 0.25]),
    ):
        assert fitted(target=target)["facts"]["best_run"]["target"] == pytest.approx(column_S.min())


def test_a_metric_to_raise_finds_what_its_negative_finds_to_lower(folder: Path) -> None:
    _, metric_SM = runs()
    write(folder / "c.csv", ("run", "accuracy"), -metric_SM[:, :1])
    lowered, raised = fitted(target="code_loss"), fitted(metrics="c.csv", higher_is_better=True)
    assert raised["weights"] == lowered["weights"]
    assert raised["facts"]["predicted"] == -lowered["facts"]["predicted"]
    assert "higher is better" in raised["notes"][1]


def test_natural_shares_are_given_or_the_mean_of_the_runs_which_is_told(folder: Path) -> None:
    (folder / "natural.yaml").write_text("count: 20\nsay: 60\nboth: 20\n")
    (folder / "natural.csv").write_text("domain,tokens\nsay,6000\ncount,2000\nboth,2000\n")
    wanted = fitted()
    for given in ("natural.yaml", "natural.csv", {"count": 2, "say": 6, "both": 2}):
        assert fitted(natural=given)["weights"] == wanted["weights"]
    found = fitted(natural=None)
    np.testing.assert_allclose(list(found["natural"].values()), runs()[0].mean(axis=0))
    assert found["notes"][-1] == "natural shares: the mean of the runs; give those of your data with --natural"


def test_passes_over_the_data_are_capped_by_its_tokens(folder: Path) -> None:
    settings = {**SMALL, "target_tokens": 10_000, "repetition": 2.0}
    tokens = {"count": 1500, "say": 6000, "both": 2000}
    found = fitted(natural=tokens, settings=settings)
    assert found["weights"]["count"] <= 2 * 1500 / 10_000 + 1e-12
    assert found["facts"]["unconstrained"]["weights"]["count"] > 0.35
    for natural, said in ((NATURAL, "found shares"), (None, "found the mean of the runs")):
        with pytest.raises(ConfigError, match=f"needs the tokens of each domain, {said}"):
            fitted(natural=natural, settings=settings)
    with pytest.raises(ConfigError, match="2 passes over all domains are 19,000 tokens"):
        fitted(natural=tokens, settings={**settings, "target_tokens": 20_000})


def test_what_is_written_is_a_plan_that_is_found_again_and_replayed(folder: Path) -> None:
    result = fitted(out="artifacts/fit")
    out = folder / "artifacts" / "fit"
    assert verify_artifact(out) == []
    mixture = load_mixture(out).mixture
    assert dict(zip(mixture.names, mixture.weight_SK[0].tolist(), strict=True)) == result["weights"]
    assert pq.read_table(out / "fit.parquet")["run"].to_pylist()[:2] == ["r0", "r1"]
    np.testing.assert_array_equal(pq.read_table(out / "runs.parquet")["metric_code_loss"], runs()[1][:, 0])
    before = (out / "manifest.json").stat().st_mtime_ns
    assert fitted(out="artifacts/fit") == result
    assert (out / "manifest.json").stat().st_mtime_ns == before
    (again,) = run_steps(load_steps(out, [f"out={folder / 'other' / 'fit'}"]))
    assert again["digest"] == result["digest"]
    with pytest.raises(ArtifactError, match=r"holds another plan .*settings.kl: 0.0, now 0.2"):
        fitted(out="artifacts/fit", settings={**SMALL, "kl": 0.2})


def test_kept_natural_proportions_are_a_warning_wherever_they_are_shown(folder: Path) -> None:
    weight_SK, _ = runs()
    loss_S = (weight_SK * np.log(weight_SK / [0.2, 0.6, 0.2])).sum(axis=1)
    write(folder / "b.csv", ("run", "loss"), 1 + loss_S[:, None] ** 2)
    result = fitted(out="artifacts/fit", settings={**SMALL, "kl": 100.0})
    assert result["weights"] == pytest.approx(NATURAL)
    said = "no mixture is predicted to be better than the natural one, which is kept"
    assert result["warnings"] == [said]
    assert read_manifest(folder / "artifacts" / "fit")["stats"]["warnings"] == [said]
    assert command("inspect", "artifacts/fit").stdout.count(said) == 1


def test_the_command_shows_weights_and_what_is_predicted(folder: Path) -> None:
    words = ["fit", "--ratios", "a.csv", "--metrics", "b.csv", "--set", "settings.num_candidates=450", "--set",
             "settings.num_best=16", "--natural", "count=0.2", "--natural", "say=0.6", "--natural", "both=0.2"]  # fmt: skip
    text = command(*words).stdout
    for part in (
        "joined by 'run'",
        "mean of code_loss, talk_loss, lower is better",
        "20.00%",
        "95 % of runs there",
        "measured",
    ):
        assert part in text
    found = json.loads(command(*words, "--target", "talk_loss", "--json", "--out", "artifacts/fit").stdout)
    assert found["out"] == "artifacts/fit"
    assert "natural (given)" in command("inspect", "artifacts/fit").stdout
    estimate = json.loads(command(*words, "--dry-run", "--json").stdout)
    assert [part["part"] for part in estimate["parts"]] == ["runs", "fit"]
    assert command("run", "artifacts/fit", "--dry-run").stdout.count("reused") == 1
    out = ("export", "artifacts/fit", "--to", "megatron", "-o", "out")
    sources = [word for name in NAMES for word in ("--source", f"{name}=/data/{name}")]
    assert command(*out, *sources).exit_code == 0


def test_a_training_follows_it_once_model_and_data_are_given(tmp_path: Path, folder: Path) -> None:
    root = tiny.make_texts(tmp_path / "project")
    fitted(out=str(root / "artifacts" / "fit"))
    config = tiny.mix_config(root)
    values = {"artifacts": [str(root / "artifacts" / "fit")], "out": str(root / "runs" / "fit"), "full": True}
    values |= {"training": tiny.mix_training(max_steps=4)}
    for key, said in (("model", "give --model"), ("data", "give --data")):
        lacking = {**values, **{name: config[name] for name in ("model", "data", "pack") if name != key}}
        with pytest.raises(ConfigError, match=f"fitted to a table of runs, which names neither model nor data; {said}"):
            train(build("train", lacking))
    run = train(build("train", {**values, **{name: config[name] for name in ("model", "data", "pack")}}))
    weights = load_mixture(root / "artifacts" / "fit").mixture
    for name, weight in zip(weights.names, weights.weight_SK[0], strict=True):
        assert run["stats"]["mixture"][name]["row_share"] == pytest.approx(weight, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "talk_los"}, "names 'talk_los', which is no metric of b.csv; did you mean 'talk_loss'"),
        ({"natural": {**NATURAL, "speech": 0.1}}, "names 'speech', which is no domain of the runs"),
        ({"natural": {"count": 0.5, "say": 0.5}}, "does not name 'both', a domain of the runs"),
        ({"natural": {**NATURAL, "both": 0.0}}, "share of 'both' is 0.0, wanted above 0"),
        ({"settings": {"num_runs": 5}}, "fit: settings has no setting 'num_runs'"),
        ({"settings": {"regressor": "gaussian"}}, "did you mean 'gaussian_process'"),
        ({"settings": {"num_folds": 13}}, "24 runs are too few to fit 3 domains; wanted at least 26"),
        ({"ratios": "c.csv"}, "c.csv does not exist"),
    ],
)
def test_wrong_input_is_said_and_nothing_is_written(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        fitted(out="artifacts/fit", **changes)
    assert not (folder / "artifacts").exists()


def test_metrics_that_say_nothing_are_refused(folder: Path) -> None:
    _, metric_SM = runs()
    write(folder / "b.csv", ("run", "loss"), np.full((24, 1), 2.5))
    with pytest.raises(DataError, match="target is 2.5 after all 24 runs"):
        fitted()
    metric_SM[3, 1] = np.nan
    write(folder / "b.csv", ("run", "code_loss", "talk_loss"), metric_SM)
    with pytest.raises(DataError, match="'talk_loss' of run r3 is missing or not a number; remove the run"):
        fitted()
    assert fitted(target="code_loss")["weights"]


def test_an_option_says_a_name_a_file_or_numbers() -> None:
    assert given_values(None, option="--target") is None
    assert given_values(["natural.yaml"], option="--natural") == "natural.yaml"
    assert given_values(["loss"], option="--target") == "loss"
    assert given_values(["a", "b"], option="--target") == {"a": 1.0, "b": 1.0}
    assert given_values(["a=2", "b=1e9"], option="--target") == {"a": 2.0, "b": 1e9}
    with pytest.raises(ConfigError, match="--target 'a=x': 'x' is no number, wanted NAME=NUMBER"):
        given_values(["a=x"], option="--target")
    with pytest.raises(ConfigError, match="--target names 'a' twice"):
        given_values(["a=1", "a=2"], option="--target")
