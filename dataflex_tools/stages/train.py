"""The train stage: follow an artifact's plan within a budget; a killed run goes on, a finished one is not run again."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.files import list_visible, remove_leftovers
from dataflex_tools.artifact.manifest import MANIFEST, check_files, file_entry, read_manifest, write_manifest
from dataflex_tools.artifact.mixture import LoadedMixture, facet_of, load_mixture
from dataflex_tools.artifact.plan import (
    LoadedPlan,
    check_can_be_made,
    check_corpus,
    check_model,
    check_tokenizer,
    load_plan,
)
from dataflex_tools.core import dist
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.config import differences, from_mapping, to_mapping
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.core.mixing import Mixture
from dataflex_tools.core.plan import Budget
from dataflex_tools.data.sources import check_exists
from dataflex_tools.data.tokenized import RenderSettings
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.sampler.mixture_sampler import MixtureSampler
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import MixingSettings, ScoreConfig, TrainConfig, recorded, restored, without_code
from dataflex_tools.stages.proxies import weights_text
from dataflex_tools.train.settings import TrainingSettings, fitted, num_steps

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class Plans:
    """What a run follows: a selection, a mixture, or both."""

    selection: LoadedPlan | None
    mixture: LoadedMixture | None

    @property
    def all(self) -> list[LoadedPlan | LoadedMixture]:
        """Those that are there."""
        return [plan for plan in (self.selection, self.mixture) if plan is not None]

    @property
    def digest(self) -> str | list[str]:
        """Of the one plan, or of each."""
        digests = [plan.manifest["digest"] for plan in self.all]
        return digests[0] if len(digests) == 1 else digests


@dataclass(frozen=True)
class PreparedRun:
    """All that is known before the model is loaded; `address` names the run's result."""

    config: TrainConfig
    model: ModelSettings
    plans: Plans
    side: inputs.Side
    tokenizer: inputs.Tokenizer
    rows: np.ndarray
    sampler: PlanSampler | MixtureSampler
    body: dict[str, Any]

    @property
    def address(self) -> str:
        """Equal addresses give equal runs."""
        return digest(self.body)


def open_plans(folders: Sequence[str]) -> Plans:
    """The plans in these folders. Raises ConfigError if two fill the same facet, ArtifactError for what is no plan."""
    found: dict[str, str] = {}
    for folder in folders:
        manifest = read_manifest(Path(folder))
        if (kind := manifest["kind"]) != "plan" or manifest["config"].get("stage") not in ("score", "fit"):
            wanted = "wanted a plan; give a folder that `flextools score` or `fit` wrote"
            raise ArtifactError(f"{folder} is an artifact of kind {kind!r}, {wanted}")
        if (facet := facet_of(manifest)) in found:
            raise ConfigError(f"artifacts {found[facet]} and {folder} both fill the facet {facet!r}; give one")
        found[facet] = folder
    selection, mixture = found.get("select"), found.get("mix")
    return Plans(
        load_plan(Path(selection)) if selection else None, load_mixture(Path(mixture)) if mixture else None
    )  # fmt: skip


def default_out(values: Mapping[str, Any]) -> str:
    """The run's folder if none is given: its name tells artifacts, budget and seed apart."""
    artifacts = values.get("artifacts") or []
    folders = [Path(folder) for folder in ([artifacts] if isinstance(artifacts, str) else artifacts)]
    training = values.get("training") or {}
    parts = ["+".join(folder.name for folder in folders)]
    budgets = [values.get("budget"), *(read_manifest(folder).get("budget") for folder in folders)]
    if budget := next((budget for budget in budgets if budget), None):
        parts.append(_amount_name(budget))
    elif training.get("max_steps"):
        parts.append(f"{training['max_steps']}-steps")
    return str(Path("runs", "-".join([*parts, f"seed{training.get('seed', 0)}"])))


def _amount_name(budget: Mapping[str, Any]) -> str:
    for name, unit in (("num_samples", "-samples"), ("num_tokens", "-tokens")):
        if budget.get(name):
            return f"{budget[name]}{unit}"
    of_tokens = "-of-tokens" if budget.get("unit") == "tokens" else ""
    return f"{budget.get('fraction')}{of_tokens}"


def resolved(config: TrainConfig, plans: Plans) -> TrainConfig:
    """The settings with everything that the first plan's own configuration answers filled in."""
    first = plans.all[0]
    score = _made_by(first, config)
    if config.mixing != MixingSettings() and plans.mixture is None:
        raise ConfigError(f"mixing has no effect: {config.artifacts[0]} is a selection; leave it out")
    if config.budget is None and plans.selection is not None:
        config = replace(config, budget=_recommended(plans.selection))
    if config.budget is not None and plans.selection is None:
        raise ConfigError(
            "train: a budget has no effect on a mixture, which takes all rows; give training.max_steps instead"
        )
    if plans.mixture is not None and len(plans.mixture.mixture.names) == 1:
        name = plans.mixture.mixture.names[0]
        raise ConfigError(
            f"{plans.mixture.folder} mixes one domain, {name!r}, which decides nothing; run `flextools score` on data of "
            "several domains (--data NAME=SOURCE for each)"
        )
    if plans.mixture is not None and len(plans.mixture.mixture.step_S) > 1 and config.training.max_steps <= 0:
        raise ConfigError(f"{plans.mixture.folder} changes over the steps of a training: give training.max_steps")
    _check_text(config, score)
    model, pack = config.model or score.model, config.pack or score.pack
    full = pack is not None or model.random_weights if config.full is None else config.full
    return replace(
        config, model=model, data=config.data or score.data, render=config.render or score.render, pack=pack, full=full
    )  # fmt: skip


def _recommended(plan: LoadedPlan) -> Budget:
    """The budget that a plan recommends. Raises ConfigError if it was made before plans recommended one."""
    written = plan.manifest.get("budget")
    budget = Budget() if written is None else from_mapping(Budget, written, where=f"{plan.folder}: budget")
    given = {name: getattr(budget, name) for name in Budget.alternatives if getattr(budget, name) is not None}
    ((name, amount),) = given.items()
    if dist.is_main():
        unit = f" of the {budget.unit}" if name == "fraction" else ""
        logger.info("no budget given: %s %g%s, as %s recommends", name.replace("_", " "), amount, unit, plan.folder)
    return budget


def weights_line(config: TrainConfig) -> str:
    """Which weights a run trains, and what to set for the others; `config` is resolved."""
    assert config.model is not None
    if config.full:
        return "all weights of the model"
    lora = config.model.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    return f"a LoRA adapter (r={lora.r}, alpha={lora.alpha:g}) on {targets}; --set full=true trains all weights"


def mixture_line(mixture: Mixture, unit: str) -> str:
    """The weights a run follows: those there are, or the first and the last of a schedule."""
    first = weights_text(mixture)
    count = len(mixture.step_S)
    if count == 1:
        return f"shares of {unit}: {first}"
    last = weights_text(Mixture.constant(mixture.names, mixture.weight_SK[-1]))
    return f"shares of {unit}: {first}; {count - 1:,} changes, from step {mixture.step_S[-1]:,} on {last}"


def _made_by(plan: LoadedPlan | LoadedMixture, config: TrainConfig) -> ScoreConfig:
    """The settings that the plan was scored with; one that was fitted to a table knows neither model nor data.

    Raises ConfigError if these are not given then.
    """
    made = restored(plan.folder, plan.manifest["config"])
    if isinstance(made, ScoreConfig):
        return made
    if config.model is None or not config.data:
        lacking = " and ".join(name for name, given in (("--model", config.model), ("--data", config.data)) if not given)
        raise ConfigError(f"{plan.folder} was fitted to a table of runs, which names neither model nor data; give {lacking}")
    method = plan.manifest["method"]
    return ScoreConfig(method=method, model=config.model, data=config.data, out=str(plan.folder), pack=config.pack)


def _check_text(config: TrainConfig, score: ScoreConfig) -> None:
    """Raise ConfigError if text that the plan held out would be trained on, or an adapter on weights nobody keeps."""
    if config.pack is not None and score.pack is not None:
        for key in ("held_out", "seed"):
            if (mine := getattr(config.pack, key)) != (theirs := getattr(score.pack, key)):
                raise ConfigError(
                    f"pack.{key} is {mine}, the plan was made with {theirs}: held-out text would be trained on; give "
                    f"pack.{key}={theirs} too, or leave pack out"
                )
    model = config.model or score.model
    if (config.pack or score.pack) is not None and model.random_weights and config.full is False:
        raise ConfigError("model.random_weights with a LoRA adapter trains almost nothing; leave full=false out")


def prepare(config: TrainConfig, cache: Path) -> PreparedRun:
    """Open plans, corpus and tokenizer, compare them, and select; raises before the model is loaded."""
    from dataflex_tools.models.load import check_model as check_targets
    from dataflex_tools.models.load import model_sha256
    from dataflex_tools.train.settings import check_training

    plans = open_plans(config.artifacts)
    given, config = config, resolved(config, plans)
    assert config.model is not None
    assert config.render is not None
    _say_what_is_named(given, config)
    _check_out(Path(config.out))
    check_training(config.training, world_size=dist.world_size())
    inputs.check_pack(config.pack, config.model)
    for source in config.data:
        check_exists(source)
    plan = plans.selection
    if plan is not None and config.budget is not None and config.budget.num_tokens is None:
        # tokens are counted below: their number depends on render.cutoff_len
        num_steps(config.training, len(plan.pick(config.budget)))
    sha256 = model_sha256(config.model)
    for each in plans.all:
        _check_weights(each, config.model, sha256)
    tokenizer = inputs.Tokenizer.of(config.model)
    for each in plans.all:
        _check_tokens(each, config.model, tokenizer, config.render)
    if not config.full:
        check_targets(config.model)
    side = _side(config, plans, tokenizer, cache)
    inputs.check_fits(side, tokenizer, config.model)
    rows = side.tokens.rows_with_labels()
    if plan is not None and config.budget is not None:
        rows = plan.pick(config.budget, side.tokens.num_tokens_N)
    config = replace(config, training=_fitted(config.training, len(rows)))
    sampler = _sampler(config, plans, side, rows)
    num_steps(config.training, sampler.num_rows)
    body = {
        "plan": plans.digest,
        "model": {"name": config.model.path, "sha256": sha256, "dtype": config.model.dtype},
        "tokenizer": tokenizer.info(config.render),
        "config": recorded(config),
        **inputs.router_rule(config.model),
    }
    if isinstance(sampler, MixtureSampler) and sampler.capped and dist.is_main():
        names = ", ".join(side.tokens.group_names[code] for code in sampler.capped)
        logger.warning("mixing.max_epochs %g caps %s; the others get what is cut off", config.mixing.max_epochs or 0, names)
    if plan is not None and plan.num_copies:
        body["copies"] = plan.num_copies  # before, a content was picked as often as it stood in the pool
    if plans.mixture is not None:  # a selection was made for its corpus, which was compared; a mixture fits any
        body["data"] = inputs.rows_digest(side.tokens)
    return PreparedRun(config, config.model, plans, side, tokenizer, rows, sampler, body)


def _fitted(settings: TrainingSettings, num_rows: int) -> TrainingSettings:
    """The training's settings for so many rows; says so if their number decided the batch."""
    found, usual = fitted(settings, num_rows), fitted(settings, 10**9)
    if found != usual and dist.is_main():
        logger.info(
            "batches of %d instead of %d: %s samples are selected (training.global_batch_size)",
            found.global_batch_size,
            usual.global_batch_size,
            f"{num_rows:,}",
        )
    return found


def _say_what_is_named(given: TrainConfig, config: TrainConfig) -> None:
    """One line for what is taken because an artifact names it."""
    assert config.model is not None
    named = [f"model {config.model.path}"] if given.model is None else []
    named += [f"data {', '.join(source.path for source in config.data)}"] if not given.data else []
    if named and dist.is_main():
        logger.info("%s, as %s names them", " and ".join(named), config.artifacts[0])


def _check_weights(plan: LoadedPlan | LoadedMixture, model: ModelSettings, sha256: str) -> None:
    """Compare a selection with the model's weights; another model may follow it on purpose, which is said."""
    if isinstance(plan, LoadedMixture):
        return
    made_with = plan.manifest["model"]
    if model.path == plan.manifest["config"]["model"]["path"]:
        # the same name with other weights is a mistake
        check_model(plan.manifest, sha256, model.path)
    elif sha256 != made_with["sha256"] and dist.is_main():
        logger.info("training %s on what was picked with %s", model.path, made_with["name"])


def _check_tokens(
    plan: LoadedPlan | LoadedMixture, model: ModelSettings, tokenizer: inputs.Tokenizer, render: RenderSettings
) -> None:
    """Compare a plan with the tokenizer; a mixture may be followed with another one, which is said."""
    if isinstance(plan, LoadedPlan):
        check_tokenizer(plan.manifest, tokenizer.sha256, render.template)
    elif (made_with := (plan.manifest["tokenizer"] or {}).get("sha256", tokenizer.sha256)) != tokenizer.sha256 and (
        dist.is_main()
    ):
        logger.warning(
            "%s was made with another tokenizer (%s) than that of %s: its weights are shares of other tokens",
            plan.folder,
            made_with[:16],
            model.path,
        )


def _side(config: TrainConfig, plans: Plans, tokenizer: inputs.Tokenizer, cache: Path) -> inputs.Side:
    """The data: packed text, or samples as the selection was made for."""
    assert config.render is not None
    if config.pack is not None:
        if plans.selection is not None:
            raise ConfigError(f"pack has no effect on {plans.selection.folder}, which selects samples; leave it out")
        return inputs.read_text(config.data, tokenizer, config.render, config.pack, cache).side
    corpus = inputs.read_corpus(config.data, cache, group="domain")
    if plans.selection is not None:
        corpus = _without_dropped(corpus, plans.selection, cache)
    side = inputs.tokenize(corpus, tokenizer, config.render, cache)
    if plans.selection is not None:  # the rows that were left out of the plan are left out of the side too
        check_corpus(plans.selection, side.corpus.fingerprint, side.corpus.ids_N16)
    return side


def _sampler(config: TrainConfig, plans: Plans, side: inputs.Side, rows: np.ndarray) -> PlanSampler | MixtureSampler:
    """The stream of rows: shuffled, or mixed by domain."""
    if plans.mixture is None:
        return PlanSampler(rows, seed=config.training.seed)
    return inputs.mixture_sampler(
        side.tokens, plans.mixture.mixture, config.training, seed=config.training.seed, unit=config.mixing.unit,
        max_epochs=config.mixing.max_epochs, rows=rows,
    )  # fmt: skip


def _without_dropped(corpus: Any, plan: LoadedPlan, cache: Path) -> Any:
    """The corpus as the score stage saw it: without target rows if it was told to drop them."""
    if not plan.manifest["config"].get("drop_overlap"):
        return corpus
    target = inputs.read_corpus(restored(plan.folder, plan.manifest["config"]).target, cache, group="subtask")
    return inputs.drop_target_rows(corpus, target, drop=True)


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the stage; returns the run's manifest. Resumes a killed run, reuses a finished one.

    Waits while another process works on `out`. Raises ArtifactError if it holds another run.
    """
    prepared = prepare(config, cache_folder(_root(config)))
    with hold_for_all(Path(config.out), "train"):
        return _train(config, prepared)


def _train(config: TrainConfig, prepared: PreparedRun) -> dict[str, Any]:
    out = Path(config.out)
    if is_done(prepared):
        if dist.is_main():
            logger.info("reused: %s is finished with these settings", out)
            _remove_work(config)
        return read_manifest(out)
    copies = prepared.body.get("copies")
    if dist.is_main():
        if copies:
            logger.info("%s rows of the pool repeat the content of others; each content is taken once", f"{copies:,}")
        logger.info(
            "training on %s of %s samples (%s tokens), by %s",
            f"{len(prepared.rows):,}", f"{len(prepared.side.tokens):,}",
            f"{int(prepared.side.tokens.num_tokens_N[prepared.rows].sum()):,}", " and ".join(config.artifacts),
        )  # fmt: skip
        logger.info("trained: %s", weights_line(prepared.config))
        if prepared.plans.mixture is not None:
            logger.info("%s", mixture_line(prepared.plans.mixture.mixture, config.mixing.unit))
    dist.barrier()
    num_steps = _run(prepared, out)
    if dist.is_main():
        _write_manifest(prepared, out, num_steps)
        _remove_work(config)
    dist.barrier()
    return read_manifest(out)


def _remove_work(config: TrainConfig) -> None:
    """Remove what served a resume only, of this start and of killed ones."""
    out = Path(config.out)
    remove_leftovers(out)
    shutil.rmtree(out / "journal", ignore_errors=True)
    if config.training.save_steps == 0:  # nobody asked for checkpoints
        shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _check_out(out: Path) -> None:
    """Raise ArtifactError if `out` holds, or lies in, something that no run can go to."""
    check_can_be_made(out)
    if not out.exists() or not list_visible(out) or (out / "run.json").is_file():
        return
    if not (out / MANIFEST).exists():
        shown = ", ".join(list_visible(out)[:3])
        raise ArtifactError(f"{out} holds something that is no run ({shown}); choose another --out")
    if (kind := read_manifest(out)["kind"]) != "run":
        raise ArtifactError(f"{out} holds an artifact of kind {kind!r}, which no run replaces; choose another --out")


def _root(config: TrainConfig) -> Path:
    return Path(config.artifacts[0]).parent


def is_done(prepared: PreparedRun) -> bool:
    """Whether `out` holds exactly this run, finished. Raises ArtifactError if it holds something else that is."""
    out = Path(prepared.config.out)
    if not (out / MANIFEST).exists():
        return False  # a run that was begun compares itself with how it was started
    found = read_manifest(out)
    if found.get("address") == prepared.address:
        check_files(out, found)
        return True
    digests = [parent["digest"] for parent in found["parents"]]
    known = {"plan": digests[0] if len(digests) == 1 else digests, **{k: found.get(k) for k in ("model", "tokenizer")}}
    known |= {key: found[key] for key in ("config", "data", "copies") if key in found}
    raise ArtifactError(
        f"{out} holds a run with other settings (differing: {', '.join(differences(known, prepared.body))}); choose "
        "another --out"
    )


def _run(prepared: PreparedRun, out: Path) -> int:
    from dataflex_tools.models.load import load_model
    from dataflex_tools.models.lora import add_lora
    from dataflex_tools.train.run import FitOptions, run_training

    settings, lora = prepared.config.training, prepared.model.lora

    def build_model() -> Any:
        base = load_model(prepared.model)
        return base if prepared.config.full else add_lora(base, lora, seed=settings.seed)

    made_from = {"plan": prepared.body["plan"], "model": prepared.body["model"]["sha256"], "full": prepared.config.full}
    made_from |= inputs.router_rule(prepared.model)
    options = FitOptions(tokenizer=prepared.tokenizer.value, made_from={**made_from, "lora": to_mapping(lora)})
    return run_training(build_model, prepared.side.tokens, prepared.sampler, settings, out, options=options).num_steps


def _write_manifest(prepared: PreparedRun, out: Path, num_steps: int) -> None:
    paths = [p for p in (out / "model").rglob("*") if p.is_file()] + [out / "ledger.parquet", out / "log.parquet"]
    names = sorted(str(path.relative_to(out)) for path in paths)
    tokens = prepared.side.tokens
    write_manifest(
        out,
        {
            "kind": "run",
            "address": prepared.address,
            "method": "+".join(plan.manifest["method"] for plan in prepared.plans.all),
            "settings": to_mapping(prepared.config.training),
            "corpus": prepared.side.info(),
            "model": prepared.body["model"],
            "tokenizer": prepared.body["tokenizer"],
            "parents": [{"path": str(plan.folder), "digest": plan.manifest["digest"]} for plan in prepared.plans.all],
            "files": [file_entry(out, name) for name in names],
            "config": without_code(prepared.body["config"]),
            **{key: prepared.body[key] for key in ("data", "copies") if key in prepared.body},
            "stats": {
                "selected_rows": len(prepared.rows),
                "selected_tokens": int(tokens.num_tokens_N[prepared.rows].sum()),
                "steps": num_steps,
                "consumed_samples": num_steps * prepared.config.training.global_batch_size,
                **_mixed(prepared, num_steps),
            },
        },
    )


def _mixed(prepared: PreparedRun, num_steps: int) -> dict[str, Any]:
    """What a mixture came to: of each domain the samples and tokens consumed, their shares, and passes over it."""
    if not isinstance(prepared.sampler, MixtureSampler):
        return {}
    tokens, end = prepared.side.tokens, num_steps * prepared.config.training.global_batch_size
    count_K, token_K = prepared.sampler.counts_at(end), np.zeros(len(tokens.group_names))
    for start in range(0, end, 2**16):
        row_L = prepared.sampler.rows_at(start, min(start + 2**16, end))
        weight_L = np.asarray(tokens.num_tokens_N)[row_L]
        token_K += np.bincount(tokens.group_N[row_L], weights=weight_L, minlength=len(token_K))
    columns = {
        "samples": count_K.tolist(), "tokens": token_K.astype(np.int64).tolist(),
        "row_share": (count_K / count_K.sum()).tolist(), "token_share": (token_K / token_K.sum()).tolist(),
        "epochs": prepared.sampler.epochs_at(end).tolist(),
    }  # fmt: skip
    domains = {name: {key: column[k] for key, column in columns.items()} for k, name in enumerate(tokens.group_names)}
    return {"mixture": domains, "capped": {tokens.group_names[code]: fact for code, fact in prepared.sampler.capped.items()}}
