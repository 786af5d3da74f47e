"""`flextools bench-mix`: does a mixture beat the natural proportions here? Decide once, train and evaluate per seed.

Every step is a stage, so what exists is not made again: a killed bench goes on, a further mixer costs only itself.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.files import write_json
from dataflex_tools.artifact.mixture import load_mixture
from dataflex_tools.core import dist
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.config import apply_overrides, from_mapping, load_yaml, require, to_mapping
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.core.rng import generator
from dataflex_tools.methods import METHODS
from dataflex_tools.methods.base import StaticMixer
from dataflex_tools.ops.bootstrap import paired_bootstrap
from dataflex_tools.stages.bench_select import RESULTS, spread
from dataflex_tools.stages.config import EvaluateConfig, ScoreConfig, TrainConfig, build, is_by_held_out, laid_over

logger = logging.getLogger("flextools")

_DECIDED = {
    "common": ("method", "settings", "out", "seed"),
    "methods": ("out", "data", "pack"),
    "train": ("artifacts", "out", "budget"),
}


@dataclass(frozen=True, kw_only=True)
class BenchMixConfig:
    """A bench of mixers as its recipe tells it. `common`: settings of the score stage that all share; `train`: those of the
    train stage, whose `training.max_steps` is the budget of every arm.

    `methods`: names, or {method: NAME, name: OTHER, settings: {...}, ...}, laid on top of `common`.
    `baseline`: the arm that the others are compared with. `evaluate`: settings of that stage; without data it is the
    held-out text (`pack.held_out`). `seeds`: trainings of each arm. Results and runs go to `out`, plans to `artifacts`.
    """

    common: Mapping[str, Any]
    methods: tuple[str | Mapping[str, Any], ...]
    train: Mapping[str, Any]
    out: str
    baseline: str = "natural"
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    artifacts: str | None = None

    def __post_init__(self) -> None:
        require(len(self.methods) > 0, "bench: methods is empty; name at least one mixer (`flextools methods` lists them)")
        require(self.seeds >= 1, f"bench: seeds is {self.seeds}, wanted at least 1")
        named = [(name, getattr(self, name)) for name in ("common", "train")]
        for part, values in [*named, *(("methods", item) for item in self.methods if isinstance(item, Mapping))]:
            if found := sorted(set(values) & set(_DECIDED[part])):
                raise ConfigError(f"bench: {part} has {found[0]!r}, which the bench decides; leave it out")


@dataclass(frozen=True)
class BenchMix:
    """A bench whose settings are all checked; `scores` by arm, the baseline first.

    A seed decides the order of the data and, where they are random, the first weights.
    """

    config: BenchMixConfig
    scores: Mapping[str, ScoreConfig]
    train: TrainConfig
    seeds: tuple[int, ...]

    def train_config(self, arm: str, seed: int) -> TrainConfig:
        """Of one training."""
        out, plan = str(Path(self.config.out) / "runs" / f"{arm}-seed{seed}"), self.scores[arm].out
        model = self.train.model
        assert model is not None
        model = replace(model, seed=seed) if model.random_weights else model  # other weights to begin with, too
        training = replace(self.train.training, seed=seed)
        return replace(self.train, artifacts=(plan,), out=out, model=model, training=training)

    def evaluate_config(self, run: str) -> EvaluateConfig:
        """Of one evaluation."""
        found: EvaluateConfig = build("evaluate", {**self.config.evaluate, "run": run})
        return found


def load_bench_mix(path: Path, overrides: Sequence[str] = ()) -> BenchMix:
    """The bench of a YAML recipe, with `a.b=value` set on top. Raises ConfigError for a setting wrong by itself."""
    values = apply_overrides(load_yaml(path), overrides)
    values["methods"] = [values["methods"]] if isinstance(values.get("methods"), str) else values.get("methods", [])
    config = from_mapping(BenchMixConfig, values, where="bench")
    root = Path(config.artifacts) if config.artifacts is not None else Path(config.out) / "artifacts"
    scores = dict(_arm(config, item, root) for item in config.methods)
    if len(scores) < len(config.methods):
        raise ConfigError("bench: two methods have the same name; give one of them another `name`")
    if config.baseline not in scores:
        raise ConfigError(f"bench: baseline {config.baseline!r} is no arm; {did_you_mean(config.baseline, scores)}")
    require("model" in config.common, "bench: common.model is missing; give the model that every arm trains")
    shared = {key: config.common[key] for key in ("model", "data", "render", "pack") if key in config.common}
    train: TrainConfig = build(
        "train", {"full": True, **laid_over(shared, config.train), "artifacts": ["-"], "out": config.out}
    )
    require(train.training.max_steps > 0, "bench: train.training.max_steps is missing: it is the budget of every arm")
    seeds = tuple(train.training.seed + place for place in range(config.seeds))
    order = [config.baseline, *(name for name in scores if name != config.baseline)]
    return BenchMix(config, {name: scores[name] for name in order}, train, seeds)


def _arm(config: BenchMixConfig, item: str | Mapping[str, Any], root: Path) -> tuple[str, ScoreConfig]:
    own = {"method": item} if isinstance(item, str) else dict(item)
    require("method" in own, f"bench: {own} in methods does not say which method; add `method: NAME`")
    name, cls = str(own.pop("name", own["method"])), METHODS.find(own["method"])
    if cls.kind != "mixer":
        raise ConfigError(f"bench: {own['method']} selects samples; compare selectors with `flextools bench-select`")
    if not name.replace("_", "").isalnum() or name in ("signals", "models", "cache"):
        raise ConfigError(f"bench: the name {name!r} cannot be a plan's folder; use letters, digits and _")
    shared = {key: value for key, value in config.common.items() if key != "proxy" or not issubclass(cls, StaticMixer)}
    if "proxy" in shared and "held_out_rows" in shared["proxy"] and not is_by_held_out(cls):
        shared["proxy"] = {key: value for key, value in shared["proxy"].items() if key != "held_out_rows"}
    return name, build("score", {**laid_over(shared, own), "out": str(root / name)})


def check(bench: BenchMix, cache_of: Callable[[ScoreConfig], Path]) -> None:
    """Raise for what would stop a later arm and can be seen before the first one trains a model."""
    from dataflex_tools.stages.mix import prepare
    from dataflex_tools.train.settings import check_training

    check_training(bench.train.training, world_size=dist.world_size(), where="train.training")
    pack = bench.train.pack
    if not bench.config.evaluate.get("data") and (pack is None or not pack.held_out):
        raise ConfigError("bench: nothing is held out to compare by; set common.pack.held_out, or give evaluate.data")
    for config in bench.scores.values():
        prepare(config, cache_of(config))


def estimate_bench_mix(bench: BenchMix) -> dict[str, Any]:
    """{"scores": {arm: estimate}, "trainings": number}; an arm alone, as if it came first. Writes nothing."""
    from dataflex_tools.stages import inputs
    from dataflex_tools.stages.estimate import estimate_score

    with inputs.cache_folder(Path(bench.config.out), is_dry=True) as cache:
        check(bench, lambda config: cache)
    scores = {arm: asdict(estimate_score(config)) for arm, config in bench.scores.items()}
    return {"scores": scores, "trainings": len(bench.scores) * len(bench.seeds)}


def bench_mix(bench: BenchMix) -> dict[str, Any]:
    """Score, train, evaluate and compare; returns what `results.json` in `out` holds.

    {"recipe", "is_finished", "weights": {arm: {domain: weight}}, "runs": {arm: [an evaluation per seed]}, "arms": [a
    summary per arm]}: perplexities per domain; losses in nats per token; `versus`: macro loss minus the baseline's, by seed.
    """
    with hold_for_all(Path(bench.config.out), "bench-mix"):
        return _bench_mix(bench)


def _bench_mix(bench: BenchMix) -> dict[str, Any]:
    from dataflex_tools.stages.evaluate import evaluate
    from dataflex_tools.stages.score import score
    from dataflex_tools.stages.train import train

    check(bench, lambda config: cache_folder(Path(config.out).parent))
    weights = {}
    for arm, config in bench.scores.items():
        score(config)
        mixture = load_mixture(Path(config.out)).mixture
        mean_K = _mean_weights(mixture.step_S, mixture.weight_SK, bench.train.training.max_steps)
        weights[arm] = dict(zip(mixture.names, mean_K.tolist(), strict=True))
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in bench.scores}
    result: dict[str, Any] = {"recipe": to_mapping(bench.config), "is_finished": False, "weights": weights, "runs": runs}
    for place, seed in enumerate(bench.seeds):
        for arm in bench.scores:
            config = bench.train_config(arm, seed)
            if dist.is_main():
                logger.info("bench: %s with seed %d, %d of %d", arm, seed, place + 1, len(bench.seeds))
            stats = train(config)["stats"]
            found = evaluate(bench.evaluate_config(config.out))
            record = {key: found[key] for key in ("groups", "all", "macro_loss", "worst")}
            runs[arm].append({"seed": seed, "mixture": stats["mixture"], **record})
            _write(bench, {**result, "arms": []})
    result |= {"is_finished": True, "arms": summaries(bench.config.baseline, runs)}
    _write(bench, result)
    return result


def _mean_weights(step_S: np.ndarray, weight_SK: np.ndarray, num_steps: int) -> np.ndarray:
    """Mean over the steps of a training, (K,)."""
    length_S = np.diff(np.minimum(np.append(step_S, num_steps), num_steps))
    return np.asarray((weight_SK * length_S[:, None]).sum(axis=0) / length_S.sum())


def _write(bench: BenchMix, result: Mapping[str, Any]) -> None:
    if dist.is_main():
        path = Path(bench.config.out) / RESULTS
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result, indent=1, end="\n")


def summaries(baseline: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A line per arm: {"name", "all", "groups": {name: ...}, "macro_loss", "worst_loss", "versus"}; mean and deviation."""
    lines = []
    for name, records in runs.items():
        groups = {
            group: spread([record["groups"][group]["perplexity"] for record in records]) for group in records[0]["groups"]
        }
        lines.append({
            "name": name,
            "all": spread([record["all"]["perplexity"] for record in records]),
            "groups": groups,
            "macro_loss": spread([record["macro_loss"] for record in records]),
            "worst_loss": spread([record["groups"][record["worst"]]["loss"] for record in records]),
            "versus": None if name == baseline else _versus(name, baseline, runs),
        })  # fmt: skip
    return lines


def _versus(name: str, baseline: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    first_S, second_S = (np.array([record["macro_loss"] for record in runs[arm]]) for arm in (name, baseline))
    if len(first_S) < 2:
        return {"mean": float(first_S[0] - second_S[0]), "low": None, "high": None, "level": None, "num_pairs": 1}
    return asdict(paired_bootstrap(first_S, second_S, rng=generator(0, "bench_mix", name, baseline)))
