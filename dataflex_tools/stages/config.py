"""What each stage can be told. YAML keys, `--set` paths and manifest `config` entries are these fields."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from dataflex_tools.artifact.manifest import MANIFEST, read_unchecked
from dataflex_tools.core.config import check_keys, from_mapping, merged, require, to_mapping
from dataflex_tools.core.errors import ArtifactError, ConfigError, did_you_mean
from dataflex_tools.core.plan import Budget
from dataflex_tools.data.packed import PackSettings
from dataflex_tools.data.sources import SourceSpec, parse_source
from dataflex_tools.data.tokenized import RenderSettings
from dataflex_tools.methods import METHODS
from dataflex_tools.methods.base import OnlineMixer, StaticMixer, SwarmMixer
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.ops.proposal import SearchSettings
from dataflex_tools.score.settings import (
    EmbeddingSettings,
    GradientSettings,
    LossSignalSettings,
    RewardGradientSettings,
    TokenLossSignalSettings,
    ZerothSignalSettings,
)
from dataflex_tools.train.settings import TrainingSettings, WarmupSettings


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """The small models a mixer trains on the way (reference, proxy, swarm), all of their weights.

    `held_out_rows`: of each domain, measured at an update or after a training. `reference_losses`: a `token_loss` signal
    that stands for training and measuring a reference; `reference_model`: a model that stands for training one;
    `reference_rows`: whether its losses are measured of the rows `used` by the proxy, or of `all`, to be shared.
    """

    training: TrainingSettings = field(default_factory=TrainingSettings)
    held_out_rows: int = 64
    reference_model: ModelSettings | None = None
    reference_losses: str | None = None
    reference_rows: Literal["used", "all"] = "used"

    def __post_init__(self) -> None:
        require(self.held_out_rows > 0, f"proxy.held_out_rows is {self.held_out_rows}, wanted a positive number")
        require(
            self.reference_model is None or self.reference_losses is None,
            "proxy.reference_model and proxy.reference_losses are both set; give one",
        )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """`flextools score`: measure what `method` needs on `data` (and `target`) with `model`; write the plan to `out`.

    Signals, warm-ups and caches go beside `out`, so that the next method finds them. `settings` are the method's own;
    `reference` is the artifact a control imitates; `drop_overlap` leaves pool rows that are also target rows unscored,
    for a control too, which has no other use for a target. For mixers: `pack` takes the data as text for pretraining, in
    blocks; `proxy` says how the small models are trained.
    """

    method: str
    model: ModelSettings
    data: tuple[SourceSpec, ...]
    out: str
    target: tuple[SourceSpec, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    drop_overlap: bool = False
    render: RenderSettings = field(default_factory=RenderSettings)
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    gradient: GradientSettings = field(default_factory=GradientSettings)
    loss: LossSignalSettings = field(default_factory=LossSignalSettings)
    token_loss: TokenLossSignalSettings = field(default_factory=TokenLossSignalSettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    zeroth: ZerothSignalSettings = field(default_factory=ZerothSignalSettings)
    reward_gradient: RewardGradientSettings | None = None
    pack: PackSettings | None = None
    proxy: ProxySettings = field(default_factory=ProxySettings)
    budget: Budget | None = None
    licence: str = "unknown"
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.data) > 0, "score: data is empty; give --data FILE, FOLDER or HUB_NAME:SPLIT")


@dataclass(frozen=True, kw_only=True)
class MixingSettings:
    """How a mixture is followed: its weights are shares of `rows` or of `tokens`; no domain is passed over more than
    `max_epochs` times (None: as often as the weights ask)."""

    unit: Literal["rows", "tokens"] = "tokens"
    max_epochs: float | None = None

    def __post_init__(self) -> None:
        require(self.max_epochs is None or self.max_epochs > 0, f"mixing.max_epochs is {self.max_epochs}, wanted above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`flextools train`: follow `artifacts` within `budget`; model, data, render and pack are the artifact's unless given.

    A selection needs a budget; a mixture alone takes all rows, and `training.max_steps` says how long. `full`: all weights
    are trained, or a LoRA adapter (`model.lora`); unless given, all of them on packed text or from random weights.
    """

    artifacts: tuple[str, ...]
    out: str
    budget: Budget | None = None
    model: ModelSettings | None = None
    data: tuple[SourceSpec, ...] = ()
    render: RenderSettings | None = None
    pack: PackSettings | None = None
    mixing: MixingSettings = field(default_factory=MixingSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    full: bool | None = None

    def __post_init__(self) -> None:
        require(len(self.artifacts) > 0, "train: no artifact given; run `flextools score` and pass --artifacts FOLDER")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`flextools evaluate`: loss per domain or subtask of `data` under the model of `run`; written to `run`/`name`.json.

    Without `data` it is the held-out part of the text that the run was trained on. `trust_remote_code` runs the code in the
    folder of the run's base model, which no run can ask for by itself.
    """

    run: str
    data: tuple[SourceSpec, ...] = ()
    name: str = "evaluation"
    render: RenderSettings | None = None
    token_budget: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(
            self.name.replace("-", "").replace("_", "").isalnum(),
            f"evaluate: name {self.name!r} is no file name; use letters, digits, - and _",
        )
        require(self.name not in ("manifest", "run"), f"evaluate: name {self.name!r} is a file of the run; choose another")
        require(self.token_budget is None or self.token_budget > 0,
                f"evaluate: token_budget is {self.token_budget}, wanted a positive number")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """`flextools fit`: the mixture that a fit to a table of runs prefers; written to `out`, if it is given.

    `ratios`: shares of the domains in each run; `metrics`: what was measured after it, joined by the column `index`, or one
    that names the runs in both, or by order. `target`: the metric to lower, "mean" of all, one, or weights; to raise with
    `higher_is_better`. `natural`: shares or tokens of the domains, or a file of them; the mean of the runs if not given.
    `settings` are those of the search (`ops.proposal.SearchSettings`).
    """

    ratios: str
    metrics: str
    out: str | None = None
    index: str | None = None
    target: Mapping[str, float] | str = "mean"
    higher_is_better: bool = False
    natural: Mapping[str, float] | str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    seed: int = 0

    def __post_init__(self) -> None:
        from_mapping(SearchSettings, self.settings, where="fit: settings")


_HINTS = {
    "ratios": "give --ratios FILE, a table of the shares of each run",
    "metrics": "give --metrics FILE, a table of what was measured after each run",
    "method": "give --method NAME (`flextools methods` lists them)", "model": "give --model FOLDER or a hub name",
    "data": "give --data FILE, FOLDER or HUB_NAME:SPLIT", "artifacts": "give --artifacts FOLDER of `flextools score`",
    "out": "give --out FOLDER", "run": "give the folder of a run",
}  # fmt: skip
STAGES: dict[str, type] = {"score": ScoreConfig, "train": TrainConfig, "evaluate": EvaluateConfig, "fit": FitConfig}
T = TypeVar("T")


def build(stage: str, values: Mapping[str, Any], *, made: Mapping[str, Any] | None = None, is_recorded: bool = False) -> Any:
    """The checked settings of a stage; sources may be plain texts (`domain=path`). Raises ConfigError.

    What `train` is told of `render`, `pack` and a `model` without a path is taken in addition to what its first artifact was
    made with, as its manifest says, or `made`: the configurations of plans that are yet to come, by folder. `is_recorded`:
    settings of a result, which may have been made before it was refused that some of them have no effect.
    """
    values = _expanded(stage, values)
    if stage == "train":
        values = _beside_the_plan(values, made or {})
    check_keys(STAGES[stage], values, where=stage)
    for item in fields(STAGES[stage]):
        if item.default is MISSING and item.default_factory is MISSING and item.name not in values:
            raise ConfigError(f"{stage}: {item.name} is missing; {_HINTS[item.name]}")
    config = from_mapping(STAGES[stage], values, where=stage)
    if stage == "score":
        _check_method(config)
        if not is_recorded:
            _check_effects(config, build_method(config))
    return config


def _expanded(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Short forms written out."""
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; {did_you_mean(stage, STAGES)}")
    values = dict(values)
    for key in ("data", "target"):
        if key in values and stage != "fit":  # whose target is a metric
            values[key] = _as_specs(values[key], f"{stage}: {key}")
    if isinstance(values.get("model"), str):
        values["model"] = {"path": values["model"]}
    if isinstance(values.get("artifacts"), str):
        values["artifacts"] = [values["artifacts"]]
    return values


_OF_THE_PLAN = {"model": ModelSettings, "render": RenderSettings, "pack": PackSettings}


def _beside_the_plan(values: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, with what the plan was made with where only a part of it is given; another model is another one whole."""
    given = {key: values[key] for key in _OF_THE_PLAN if isinstance(values.get(key), Mapping)}
    if "path" in given.get("model", {}):
        del given["model"]
    given = {key: value for key, value in given.items() if {item.name for item in fields(_OF_THE_PLAN[key])} - set(value)}
    folders = values.get("artifacts")
    if not given or not isinstance(folders, list | tuple) or not folders:
        return dict(values)
    folder = str(folders[0])
    plan = made.get(folder) or {}
    if not plan and (Path(folder) / MANIFEST).is_file():
        plan = read_unchecked(Path(folder)).get("config") or {}
    plan = without_code(plan)
    base = {key: value for key, value in plan.items() if key in given and isinstance(value, Mapping)}
    return {**values, **merged(base, given)}


def laid_over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's `own` settings on top of those it shares with others, key by key.

    A model given as text is its path; a budget of another kind (samples, say, instead of a fraction) replaces a budget.
    """
    budget = own.get("budget")
    if isinstance(budget, Mapping) and any(budget.get(name) is not None for name in Budget.alternatives):
        shared = {key: value for key, value in shared.items() if key != "budget"}

    def written_out(values: Mapping[str, Any]) -> dict[str, Any]:
        model = values.get("model")
        return {**values, "model": {"path": model}} if isinstance(model, str) else dict(values)

    return merged(written_out(shared), written_out(own))


def recorded(config: ScoreConfig | TrainConfig | FitConfig) -> dict[str, Any]:
    """What a result's manifest keeps as `config`: all settings but `out`, so that a moved result is the same result."""
    stage = next(name for name, cls in STAGES.items() if isinstance(config, cls))
    # newer keys are named only where set: what was recorded before they existed keeps its address
    newer = _NEWER.get(stage, ())
    unset = [item.name for item in fields(config) if item.name in newer and getattr(config, item.name) == _default(item)]
    values = {key: value for key, value in to_mapping(config).items() if key not in ("out", *unset)}
    for key, names in (("render", ("mask_history",)), ("data", _NEWER_OF_SOURCES), ("target", _NEWER_OF_SOURCES)):
        values |= {key: _without_unset(values[key], names)} if values.get(key) else {}
    return {"stage": stage, **values}


def _without_unset(value: Any, names: Sequence[str]) -> Any:
    """A mapping, or each of a list, without these keys where they say nothing."""
    if isinstance(value, list):
        return [_without_unset(item, names) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {key: item for key, item in value.items() if key not in names or item}


_NEWER_OF_SOURCES = ("leave_out", "lines")
_NEWER = {"score": ("pack", "proxy", "budget"), "train": ("pack", "mixing")}


def _default(item: Any) -> Any:
    return item.default if item.default is not MISSING else item.default_factory()


_CODE = ("function", "endpoint")  # kinds of rewards


def without_code(config: Any) -> Any:
    """A recorded `config` without what would run code or call a server: an artifact is data, never code.

    `trust_remote_code` is false, and a reward keeps its kind but not its function or endpoint. Written so, and read so:
    these come from the user's own command line, config or project file.
    """
    if isinstance(config, Mapping):
        dropped = _CODE if config.get("kind") in _CODE else ()
        kept = {key: without_code(value) for key, value in config.items() if key not in dropped}
        return kept | {key: False for key in ("trust_remote_code",) if key in config}
    return [without_code(item) for item in config] if isinstance(config, list | tuple) else config


def restored(folder: Path, config: Mapping[str, Any]) -> Any:
    """The checked settings of the stage that made the result in `folder`, from its manifest's `config`.

    Without what would run code (see `without_code`); a reward that is nothing without it is left out.
    """
    if config.get("stage") not in STAGES:
        raise ArtifactError(f"{folder} does not record how it was made (config.stage); give one that flextools wrote")
    values = {key: value for key, value in without_code(config).items() if key != "stage"}
    reward = (values.get("reward_gradient") or {}).get("reward") or {}
    if reward.get("kind") in _CODE:
        values["reward_gradient"] = None
    return build(config["stage"], {"out": str(folder), **values}, is_recorded=True)


def _as_specs(value: Any, where: str) -> list[SourceSpec]:
    """Sources given as text, mapping or spec."""
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    specs = []
    for item in items:
        item = parse_source(item) if isinstance(item, str) else item
        if not isinstance(item, SourceSpec | Mapping):
            raise ConfigError(f"{where} holds {item!r}, wanted a path, or a mapping with a path")
        specs.append(item if isinstance(item, SourceSpec) else from_mapping(SourceSpec, item, where=where))
    return specs


def _check_method(config: ScoreConfig) -> None:
    method = build_method(config)
    name = config.method
    if method.kind == "mixer":
        _check_mixer(config, method)
        return
    if config.pack is not None or config.proxy != ProxySettings():
        raise ConfigError(f"pack and proxy have no effect: method {name!r} selects samples; leave them out")
    if method.uses_target and not config.target:
        raise ConfigError(f"method {name!r} needs a target: give --target FILE with samples of what you want to improve")
    if config.drop_overlap and not config.target:
        raise ConfigError("drop_overlap has no effect without a target; give --target too, or leave --drop-overlap out")
    if config.target and not method.uses_target and not config.drop_overlap:
        raise ConfigError(f"method {name!r} uses no target; leave --target out, or leave its rows out with --drop-overlap")
    if method.uses_reference and config.reference is None:
        raise ConfigError(f"method {name!r} imitates another artifact: give --reference artifacts/less")
    if config.reference is not None and not method.uses_reference:
        raise ConfigError(f"method {name!r} uses no reference; leave --reference out")
    for key in {key for need in method.needs() if need.kind == "gradient" for key in need.settings}:
        if (given := getattr(config.gradient, key)) != getattr(GradientSettings(), key):
            raise ConfigError(f"gradient.{key} {given!r} has no effect: method {name!r} sets it; use settings.{key}")


def _check_mixer(config: ScoreConfig, method: Any) -> None:
    """Raise ConfigError for what is missing, or has no effect on what this mixer does."""
    name = config.method
    for key in ("target", "reference", "drop_overlap", "reward_gradient", "budget"):
        if getattr(config, key):
            raise ConfigError(f"method {name!r} is a mixer and uses no {key}; leave it out")
    if isinstance(method, StaticMixer) and config.proxy != ProxySettings():
        raise ConfigError(f"proxy has no effect: method {name!r} trains no model; leave it out")
    observes = method.observes if isinstance(method, OnlineMixer) else None
    if is_by_held_out(type(method)) and (config.pack is None or not config.pack.held_out):
        raise ConfigError(f"method {name!r} measures held-out text: set pack.held_out, e.g. 0.05, and pack.block_size")
    for key in ("reference_model", "reference_losses"):
        if getattr(config.proxy, key) is not None and observes != "excess_loss":
            raise ConfigError(f"proxy.{key} has no effect: method {name!r} compares with no reference; leave it out")


def _check_effects(config: ScoreConfig, method: Any) -> None:
    """Raise ConfigError for settings of signals and references that a mixer does not use."""
    if method.kind != "mixer":
        return
    name, proxy = config.method, config.proxy
    for key in ("warmup", "gradient", "loss", "embedding", "zeroth"):
        if _is_set(config, key):
            raise ConfigError(f"{key} has no effect: method {name!r} is a mixer and measures no such signal; leave it out")
    compares = isinstance(method, OnlineMixer) and method.observes == "excess_loss"
    measures = compares and proxy.reference_losses is None
    unused = {
        "token_loss": not measures and _is_set(config, "token_loss"),
        "proxy.reference_rows": not measures and _is_set(proxy, "reference_rows"),
        "proxy.held_out_rows": not is_by_held_out(type(method)) and _is_set(proxy, "held_out_rows"),
    }
    for key, is_unused in unused.items():
        if is_unused:
            raise ConfigError(f"{key} has no effect: method {name!r} measures nothing of it here; leave it out")
    given = [key for key in ("reference_model", "reference_losses") if getattr(proxy, key) is not None]
    if given and method.max_rounds > 1:
        raise ConfigError(
            f"settings.max_rounds {method.max_rounds} has no effect with proxy.{given[0]}: later rounds train another "
            "reference; leave one of them out"
        )
    if given and _is_set(method.settings, "reference_weights"):
        raise ConfigError(
            f"settings.reference_weights has no effect with proxy.{given[0]}: no reference is trained; leave one of them out"
        )


def is_by_held_out(cls: type) -> bool:
    """Whether a class of mixers decides by held-out text."""
    is_online = issubclass(cls, OnlineMixer) and cls.observes in ("held_out_loss", "router_load")
    return is_online or issubclass(cls, SwarmMixer)


def _is_set(config: Any, key: str) -> bool:
    """Whether a setting is another than its default."""
    item = next(item for item in fields(config) if item.name == key)
    return bool(getattr(config, key) != _default(item))


def build_method(config: ScoreConfig) -> Any:
    """The method with its settings. Raises ConfigError for an unknown method or setting, with the nearest name."""
    cls = METHODS.find(config.method)
    return cls(from_mapping(cls.Settings, config.settings, where=f"{cls.kind} {config.method!r}"))


def with_skip_bad(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `skip_bad` set on every source."""
    changed = dict(values)
    for key in ("data", "target"):
        if key in values:
            changed[key] = [replace(source, skip_bad=True) for source in _as_specs(values[key], key)]
    return changed
