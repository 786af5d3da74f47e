"""`flextools bench-select`: does a method beat random here? Score once, train and evaluate per seed, compare.

Every step is a stage, so what exists is not made again: a killed bench goes on, a further method costs only itself.
"""

import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataflex_tools.artifact.files import write_json
from dataflex_tools.artifact.manifest import MANIFEST
from dataflex_tools.artifact.plan import LoadedPlan, load_plan
from dataflex_tools.core import dist
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.config import apply_overrides, from_mapping, load_yaml, require, to_mapping
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.core.plan import Budget
from dataflex_tools.core.rng import generator
from dataflex_tools.data.sources import check_exists
from dataflex_tools.methods import METHODS
from dataflex_tools.ops.bootstrap import paired_bootstrap
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import EvaluateConfig, ScoreConfig, TrainConfig, build, laid_over

logger = logging.getLogger("flextools")

RESULTS = "results.json"
RANDOM, MATCHED = "random", "random_length_matched"
_TAKEN = ("signals", "models", "cache", RANDOM, MATCHED)  # folders beside the plans
# what the bench decides, by the part of the recipe that must not; a method picks from the pool that all pick from
_DECIDED = {
    "common": ("method", "settings", "out", "reference", "seed"),
    "methods": ("out", "reference", "data", "drop_overlap"),
    "train": ("artifacts", "out", "budget"),
    "evaluate": ("run", "name"),
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """A bench as its recipe tells it. `common`: settings of the score stage that all methods share; `train` and `evaluate`:
    settings of those stages.

    `methods`: names, or {method: NAME, name: OTHER, settings: {...}, ...}, laid on top of `common`.
    `target_groups`: groups of the evaluation data whose loss decides. `budget`: of tokens, so that all train on equally
    many. `seeds`: trainings of each arm, with seeds from `train.training.seed` on. `match`: the length-matched control
    imitates the `first` method, or there is one for `each`. Results and runs go to `out`, plans and signals to
    `artifacts` (out/artifacts if not given; in a folder with signals they are used again).
    """

    common: Mapping[str, Any]
    methods: tuple[str | Mapping[str, Any], ...]
    evaluate: Mapping[str, Any]
    target_groups: tuple[str, ...]
    out: str
    train: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=lambda: Budget(fraction=0.05, unit="tokens"))
    seeds: int = 3
    match: Literal["first", "each"] = "first"
    artifacts: str | None = None

    def __post_init__(self) -> None:
        require(len(self.methods) > 0, "bench: methods is empty; name at least one (`flextools methods` lists them)")
        require(len(self.target_groups) > 0, "bench: target_groups is empty; name groups of the evaluation data")
        require(self.seeds >= 1, f"bench: seeds is {self.seeds}, wanted at least 1")
        is_tokens = self.budget.num_tokens is not None or self.budget.unit == "tokens"
        require(is_tokens, "bench: budget is a number of samples; give budget.fraction (of tokens) or budget.num_tokens")
        named = [(name, getattr(self, name)) for name in ("common", "train", "evaluate")]
        for part, values in [*named, *(("methods", item) for item in self.methods if isinstance(item, Mapping))]:
            if found := sorted(set(values) & set(_DECIDED[part])):
                raise ConfigError(f"bench: {part} has {found[0]!r}, which the bench decides; leave it out")


@dataclass(frozen=True)
class Arm:
    """One line of the result: a method, scored once, or a control, drawn anew for each seed."""

    name: str
    scores: tuple[ScoreConfig, ...]

    @property
    def is_control(self) -> bool:
        """Whether it is there for comparison only."""
        return self.scores[0].method in (RANDOM, MATCHED)

    @property
    def plans(self) -> tuple[ScoreConfig, ...]:
        """Each plan once."""
        return self.scores if self.is_control else self.scores[:1]


@dataclass(frozen=True)
class Bench:
    """A bench whose settings are all checked; seed s of an arm is `arm.scores[s]`, trained with `seeds[s]`."""

    config: BenchConfig
    arms: tuple[Arm, ...]
    train: TrainConfig
    evaluate: EvaluateConfig
    seeds: tuple[int, ...]

    @property
    def root(self) -> Path:
        """Where plans and signals are."""
        return _root(self.config)

    def train_config(self, arm: Arm, place: int) -> TrainConfig:
        """Of the training with seed number `place`."""
        plan, seed = arm.scores[place].out, self.seeds[place]
        name = Path(plan).name if arm.is_control else f"{arm.name}-seed{seed}"
        out = str(Path(self.config.out) / "runs" / name)
        return replace(self.train, artifacts=(plan,), out=out, training=replace(self.train.training, seed=seed))


def _root(config: BenchConfig) -> Path:
    return Path(config.artifacts) if config.artifacts is not None else Path(config.out) / "artifacts"


def load_bench(path: Path, overrides: Sequence[str] = ()) -> Bench:
    """The bench of a YAML recipe, with `a.b=value` set on top. Raises ConfigError."""
    return build_bench(apply_overrides(load_yaml(path), overrides))


def build_bench(values: Mapping[str, Any]) -> Bench:
    """The bench of a recipe; all settings are checked here. Raises ConfigError."""
    values = dict(values)
    for key in ("methods", "target_groups"):
        values[key] = [values[key]] if isinstance(values.get(key), str) else values.get(key, [])
    config = from_mapping(BenchConfig, values, where="bench")
    shared = {key: config.common[key] for key in ("model", "data", "render") if key in config.common}
    out = {"artifacts": ["-"], "out": config.out, "budget": to_mapping(config.budget)}
    train: TrainConfig = build("train", {**laid_over(shared, config.train), **out})
    evaluate: EvaluateConfig = build("evaluate", {**config.evaluate, "run": config.out})
    seeds = tuple(train.training.seed + place for place in range(config.seeds))
    return Bench(config, _arms(config, seeds), train, evaluate, seeds)


def _arms(config: BenchConfig, seeds: Sequence[int]) -> tuple[Arm, ...]:
    methods = [_method_arm(config, item, len(seeds)) for item in config.methods]
    names = [arm.name for arm in methods]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"bench: {again[0]!r} stands twice in methods; give one of them another `name`")
    matched = {MATCHED: methods[0]}
    if config.match == "each":
        matched = {f"{MATCHED}_{arm.name}": arm for arm in methods}
    controls = [Arm(RANDOM, tuple(_control(config, RANDOM, RANDOM, seed) for seed in seeds))]
    for name, arm in matched.items():
        reference = {"reference": arm.scores[0].out}
        controls.append(Arm(name, tuple(_control(config, name, MATCHED, seed, **reference) for seed in seeds)))
    return (*methods, *controls)


def _method_arm(config: BenchConfig, item: str | Mapping[str, Any], num_seeds: int) -> Arm:
    own = {"method": item} if isinstance(item, str) else dict(item)
    require("method" in own, f"bench: {own} in methods does not say which method; add `method: NAME`")
    name = str(own.pop("name", own["method"]))
    if own["method"] in (RANDOM, MATCHED):
        raise ConfigError(f"bench: {own['method']} is always compared with; leave it out of methods")
    if not name.replace("_", "").isalnum() or name in _TAKEN:
        raise ConfigError(f"bench: the name {name!r} cannot be a plan's folder; use letters, digits and _")
    if METHODS.find(own["method"]).kind != "selector":
        raise ConfigError(f"bench: {own['method']} mixes domains; compare mixers with `flextools bench-mix`")
    values = laid_over(config.common, own)
    if not METHODS.find(own["method"]).uses_target and not values.get("drop_overlap"):
        values.pop("target", None)
    return Arm(name, (build("score", {**values, "out": str(_root(config) / name)}),) * num_seeds)


def _control(config: BenchConfig, name: str, method: str, seed: int, **own: str) -> ScoreConfig:
    values = laid_over(config.common, {"method": method, "seed": seed, **own})
    if not values.get("drop_overlap"):
        values.pop("target", None)
    return build("score", {**values, "out": str(_root(config) / f"{name}-{seed}")})


def check(bench: Bench, cache: Path) -> list[str]:
    """Raise for what can be seen to be wrong before a model is loaded; notes on the evaluation data."""
    from dataflex_tools.data.corpus import overlap
    from dataflex_tools.stages.score import check_settings
    from dataflex_tools.train.settings import check_training

    for arm in bench.arms:
        check_settings(arm.scores[0])
    for source in (*bench.evaluate.data, *bench.train.data):
        check_exists(source)
    check_training(bench.train.training, world_size=dist.world_size(), where="train.training")
    held_out = inputs.read_corpus(bench.evaluate.data, cache, group="domain")
    for name in bench.config.target_groups:
        if name not in held_out.group_names:
            hint = did_you_mean(name, held_out.group_names)
            raise ConfigError(f"bench: target_groups has {name!r}, which is no group of the evaluation data; {hint}")
    first, notes = bench.arms[0].scores[0], []
    for side, sources, group in (("pool", first.data, "domain"), ("target", first.target, "subtask")):
        if sources and (count := len(overlap(held_out, inputs.read_corpus(sources, cache, group=group)))):
            notes.append(
                f"{count:,} of {len(held_out):,} evaluation rows are {side} rows too: what is measured is partly memory"
            )
    for note in notes if dist.is_main() else ():
        logger.warning("%s", note)
    return notes


def bench_select(bench: Bench) -> dict[str, Any]:
    """Score, train, evaluate and compare; returns what `results.json` in `out` holds.

    {"recipe", "is_finished", "notes", "runs": {arm: [a record per seed]}, "arms": [a summary per arm]}: losses in nats
    per answer token; `versus` holds differences of the target loss to each control, negative where the arm is better.
    """
    with hold_for_all(Path(bench.config.out), "bench-select"):
        return _bench_select(bench)


def _bench_select(bench: Bench) -> dict[str, Any]:
    from dataflex_tools.stages.score import score

    earlier = _seconds_of(Path(bench.config.out) / RESULTS)
    notes = check(bench, cache_folder(bench.root))
    for arm in bench.arms:
        for config in arm.plans:
            score(config)
            _check_budget(bench, load_plan(Path(config.out)))
    runs: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in bench.arms}
    result: dict[str, Any] = {"recipe": to_mapping(bench.config), "is_finished": False, "notes": notes, "runs": runs}
    for place in range(len(bench.seeds)):
        for arm in bench.arms:
            runs[arm.name].append(_run(bench, arm, place, earlier))
            _write(bench, {**result, "arms": []})
    result |= {"is_finished": True, "arms": summaries(bench, runs)}
    _write(bench, result)
    return result


def _check_budget(bench: Bench, plan: LoadedPlan) -> None:
    """Raise ConfigError if the plan cannot fill the budget, or its rows no batch: it would train on less than others."""
    from dataflex_tools.train.settings import num_steps

    budget, counts_N = bench.train.budget, plan.counts_N
    is_finite_N = np.isfinite(plan.score_N) & counts_N
    limit = budget.num_tokens or int((budget.fraction or 0) * plan.num_tokens_N[counts_N].sum())
    if (most := int(plan.num_tokens_N[is_finite_N].sum())) < limit:
        raise ConfigError(
            f"bench: {plan.folder} lets {int(is_finite_N.sum()):,} of {len(plan):,} rows be selected, {most:,} tokens, and "
            f"the budget is {limit:,}: it would train on less than the others; lower budget.{_given(budget)}, or let the "
            "method keep more"
        )
    num_steps(bench.train.training, len(plan.pick(budget)))


def _given(budget: Budget) -> str:
    return "fraction" if budget.fraction is not None else "num_tokens"


def _run(bench: Bench, arm: Arm, place: int, earlier: Mapping[str, float]) -> dict[str, Any]:
    """Train and evaluate one arm with one seed; `seconds` is the training's, None if it was made before by another call."""
    from dataflex_tools.stages.evaluate import evaluate
    from dataflex_tools.stages.train import train

    config = bench.train_config(arm, place)
    if dist.is_main():
        logger.info("bench: %s with seed %d, %d of %d", arm.name, bench.seeds[place], place + 1, len(bench.seeds))
    start, was_there = time.perf_counter(), (Path(config.out) / MANIFEST).exists()
    manifest = train(config)
    seconds = time.perf_counter() - start
    groups = evaluate(replace(bench.evaluate, run=config.out))["groups"]
    wanted = bench.config.target_groups
    stats = manifest["stats"]
    return {
        "seed": bench.seeds[place],
        "run": manifest["digest"],
        "target_loss": _mean_loss([group for name, group in groups.items() if name in wanted]),
        "other_loss": _mean_loss([group for name, group in groups.items() if name not in wanted]),
        "target_share": _target_share(bench, load_plan(Path(config.artifacts[0]))),
        "samples": stats["selected_rows"],
        "tokens": stats["selected_tokens"],
        "steps": stats["steps"],
        "seconds": earlier.get(manifest["digest"]) if was_there else seconds,
    }


def _mean_loss(groups: Sequence[Mapping[str, Any]]) -> float | None:
    """Nats per answer token over all tokens of the groups, None without a group."""
    num_tokens = sum(group["tokens"] for group in groups)
    return sum(group["loss"] * group["tokens"] for group in groups) / num_tokens if groups else None


def _target_share(bench: Bench, plan: LoadedPlan) -> float | None:
    """Share of the picked rows whose domain is a target group, None if no domain of the pool is one."""
    codes = [code for code, name in enumerate(plan.domain_names) if name in bench.config.target_groups]
    assert bench.train.budget is not None
    rows = plan.pick(bench.train.budget)
    return float(np.isin(plan.domain_N[rows], codes).mean()) if codes else None


def _seconds_of(path: Path) -> dict[str, float]:
    """Seconds of the trainings that an earlier call of the bench recorded, by the digest of the run."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return {record["run"]: record["seconds"] for records in runs.values() for record in records}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no results of a bench: nothing is known
        return {}


def _write(bench: Bench, result: Mapping[str, Any]) -> None:
    if dist.is_main():
        write_json(Path(bench.config.out) / RESULTS, result, indent=1, end="\n")


def summaries(bench: Bench, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A line per arm: {"name", "is_control", COLUMN: {"mean", "std"} or None, "versus": {CONTROL: interval}}."""
    columns = ("target_loss", "other_loss", "target_share", "samples", "tokens", "steps", "seconds")
    controls = [arm.name for arm in bench.arms if arm.is_control]
    return [
        {
            "name": arm.name,
            "method": arm.scores[0].method,
            "is_control": arm.is_control,
            **{name: spread([record[name] for record in runs[arm.name]]) for name in columns},
            "versus": {name: _versus(arm.name, name, runs) for name in controls if name != arm.name},
        }
        for arm in bench.arms
    ]


def spread(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """{"mean", "std"} of what is known, std None for a single value; None if nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    # exact, so that equal values have a deviation of 0
    return {"mean": statistics.mean(known), "std": statistics.stdev(known) if len(known) > 1 else None}


def _versus(name: str, control: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Target loss of an arm minus a control's, seed by seed; no interval for a single seed."""
    first_S, second_S = (np.array([record["target_loss"] for record in runs[arm]]) for arm in (name, control))
    if len(first_S) < 2:
        return {"mean": float(first_S[0] - second_S[0]), "low": None, "high": None, "level": None, "num_pairs": 1}
    return asdict(paired_bootstrap(first_S, second_S, rng=generator(0, "bench_select", name, control)))


def estimate_bench(bench: Bench) -> dict[str, Any]:
    """{"scores": {method: estimate}, "trainings": number}; a method alone, as if it came first. Writes nothing."""
    from dataflex_tools.stages.estimate import estimate_score

    with inputs.cache_folder(bench.root, is_dry=True) as cache:
        check(bench, cache)
    scores = {arm.name: asdict(estimate_score(arm.scores[0])) for arm in bench.arms if not arm.is_control}
    return {"scores": scores, "trainings": len(bench.arms) * len(bench.seeds)}
