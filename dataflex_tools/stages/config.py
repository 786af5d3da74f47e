"""What each stage can be told. YAML keys, `--set` paths and manifest `config` entries are these fields."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from dataflex_tools.core.config import check_keys, from_mapping, require, to_mapping
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.core.plan import Budget
from dataflex_tools.data.sources import SourceSpec, parse_source
from dataflex_tools.data.tokenized import RenderSettings
from dataflex_tools.methods import METHODS
from dataflex_tools.models.settings import ModelSettings
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
class ScoreConfig:
    """`flextools score`: measure what `method` needs on `data` (and `target`) with `model`; write the plan to `out`.

    Signals, warm-ups and caches go beside `out`, so that the next method finds them. `settings` are the method's own;
    `reference` is the artifact a control imitates; `drop_overlap` leaves pool rows that are also target rows unscored,
    for a control too, which has no other use for a target.
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
    licence: str = "unknown"
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.data) > 0, "score: data is empty; give --data FILE, FOLDER or HUB_NAME:SPLIT")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`flextools train`: follow `artifacts` within `budget`; model and data are the artifact's unless given.

    `full` trains all weights instead of a LoRA adapter.
    """

    artifacts: tuple[str, ...]
    out: str
    budget: Budget
    model: ModelSettings | None = None
    data: tuple[SourceSpec, ...] = ()
    render: RenderSettings | None = None
    training: TrainingSettings = field(default_factory=TrainingSettings)
    full: bool = False

    def __post_init__(self) -> None:
        require(len(self.artifacts) > 0, "train: no artifact given; run `flextools score` and pass --artifacts FOLDER")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`flextools evaluate`: loss per domain or subtask of `data` under the model of `run`; written to `run`/`name`.json."""

    run: str
    data: tuple[SourceSpec, ...]
    name: str = "evaluation"
    render: RenderSettings | None = None
    token_budget: int | None = None

    def __post_init__(self) -> None:
        require(len(self.data) > 0, "evaluate: data is empty; give --data FILE, FOLDER or HUB_NAME:SPLIT")
        require(
            self.name.replace("-", "").replace("_", "").isalnum(),
            f"evaluate: name {self.name!r} is no file name; use letters, digits, - and _",
        )
        require(self.name not in ("manifest", "run"), f"evaluate: name {self.name!r} is a file of the run; choose another")
        require(self.token_budget is None or self.token_budget > 0,
                f"evaluate: token_budget is {self.token_budget}, wanted a positive number")  # fmt: skip


_HINTS = {
    "method": "give --method NAME (`flextools methods` lists them)", "model": "give --model FOLDER or a hub name",
    "data": "give --data FILE, FOLDER or HUB_NAME:SPLIT", "artifacts": "give --artifacts FOLDER of `flextools score`",
    "out": "give --out FOLDER", "budget": "give budget: {fraction: 0.05}, or num_samples, or num_tokens",
    "run": "give the folder of a run",
}  # fmt: skip
STAGES: dict[str, type] = {"score": ScoreConfig, "train": TrainConfig, "evaluate": EvaluateConfig}
T = TypeVar("T")


def build(stage: str, values: Mapping[str, Any]) -> Any:
    """The checked settings of a stage; sources may be plain texts (`domain=path`). Raises ConfigError."""
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; {did_you_mean(stage, STAGES)}")
    values = dict(values)
    for key in ("data", "target"):
        if key in values:
            values[key] = _as_specs(values[key], f"{stage}: {key}")
    if isinstance(values.get("model"), str):
        values["model"] = {"path": values["model"]}
    if isinstance(values.get("artifacts"), str):
        values["artifacts"] = [values["artifacts"]]
    check_keys(STAGES[stage], values, where=stage)
    for item in fields(STAGES[stage]):
        if item.default is MISSING and item.default_factory is MISSING and item.name not in values:
            raise ConfigError(f"{stage}: {item.name} is missing; {_HINTS[item.name]}")
    config = from_mapping(STAGES[stage], values, where=stage)
    if stage == "score":
        _check_method(config)
    return config


def recorded(config: ScoreConfig | TrainConfig) -> dict[str, Any]:
    """What a result's manifest keeps as `config`: all settings but `out`, so that a moved result is the same result."""
    stage = next(name for name, cls in STAGES.items() if isinstance(config, cls))
    return {"stage": stage, **{key: value for key, value in to_mapping(config).items() if key != "out"}}


def restored(folder: Path, config: Mapping[str, Any]) -> Any:
    """The checked settings of the stage that made the result in `folder`, from its manifest's `config`."""
    return build(config["stage"], {"out": str(folder), **{k: v for k, v in config.items() if k != "stage"}})


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
