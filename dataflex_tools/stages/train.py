"""The train stage: follow an artifact's plan within a budget; a killed run goes on, a finished one is not run again."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.files import list_visible, remove_leftovers
from dataflex_tools.artifact.manifest import MANIFEST, file_entry, read_manifest, write_manifest
from dataflex_tools.artifact.plan import (
    LoadedPlan,
    check_can_be_made,
    check_corpus,
    check_model,
    check_tokenizer,
    load_plan,
)
from dataflex_tools.core import dist
from dataflex_tools.core.config import differences, to_mapping
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.plan import select_rows
from dataflex_tools.data.sources import check_exists
from dataflex_tools.data.tokenized import Tokens
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.sampler.plan_sampler import PlanSampler
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import ScoreConfig, TrainConfig, recorded, restored
from dataflex_tools.train.settings import num_steps

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class PreparedRun:
    """All that is known before the model is loaded; `address` names the run's result."""

    config: TrainConfig
    model: ModelSettings
    plan: LoadedPlan
    side: inputs.Side
    tokenizer: inputs.Tokenizer
    rows: np.ndarray
    body: dict[str, Any]

    @property
    def address(self) -> str:
        """Equal addresses give equal runs."""
        return digest({key: self.body[key] for key in ("plan", "model", "tokenizer", "config")})


def resolved(config: TrainConfig) -> TrainConfig:
    """The settings with everything that the artifact's own configuration answers filled in."""
    if len(config.artifacts) > 1:
        raise ConfigError(
            f"artifacts {config.artifacts[0]} and {config.artifacts[1]} both fill the facet 'select'; give one"
        )
    manifest = read_manifest(Path(config.artifacts[0]))
    if (kind := manifest["kind"]) != "plan" or manifest["config"].get("stage") != "score":
        wanted = "wanted a plan; give a folder that `flextools score` wrote"
        raise ArtifactError(f"{config.artifacts[0]} is an artifact of kind {kind!r}, {wanted}")
    score: ScoreConfig = restored(Path(config.artifacts[0]), manifest["config"])
    return replace(
        config, model=config.model or score.model, data=config.data or score.data, render=config.render or score.render
    )


def prepare(config: TrainConfig, cache: Path) -> PreparedRun:
    """Open plan, corpus and tokenizer, compare them, and select; raises before the model is loaded."""
    from dataflex_tools.models.load import check_model as check_targets
    from dataflex_tools.models.load import model_sha256
    from dataflex_tools.train.settings import check_training

    config = resolved(config)
    assert config.model is not None
    assert config.render is not None
    _check_out(Path(config.out))
    check_training(config.training, world_size=dist.world_size())
    for source in config.data:
        check_exists(source)
    plan = load_plan(Path(config.artifacts[0]))
    if config.budget.num_tokens is None:  # tokens are counted below: their number depends on render.cutoff_len
        num_steps(config.training, len(select_rows(plan.score_N, plan.num_tokens_N, config.budget)))
    sha256 = model_sha256(config.model)
    tokenizer = inputs.Tokenizer.of(config.model)
    if config.model.path == plan.manifest["config"]["model"]["path"]:
        # another model may follow the plan on purpose; the same name with other weights is a mistake
        check_model(plan.manifest, sha256, config.model.path)
    elif sha256 != plan.manifest["model"]["sha256"] and dist.is_main():
        logger.info("training %s on what was picked with %s", config.model.path, plan.manifest["model"]["name"])
    check_tokenizer(plan.manifest, tokenizer.sha256, config.render.template)
    if not config.full:
        check_targets(config.model)
    corpus = inputs.read_corpus(config.data, cache, group="domain")
    corpus = _without_dropped(corpus, plan, cache)
    check_corpus(plan, corpus.fingerprint, corpus.ids_N16)
    side = inputs.tokenize(corpus, tokenizer, config.render, cache)
    inputs.check_vocabulary(side, tokenizer, config.model)
    rows = select_rows(plan.score_N, side.tokens.num_tokens_N, config.budget)
    num_steps(config.training, len(rows))
    body = {
        "plan": plan.manifest["digest"],
        "model": {"name": config.model.path, "sha256": sha256, "dtype": config.model.dtype},
        "tokenizer": tokenizer.info(config.render),
        "config": recorded(config),
    }
    return PreparedRun(config, config.model, plan, side, tokenizer, rows, body)


def _without_dropped(corpus: Any, plan: LoadedPlan, cache: Path) -> Any:
    """The corpus as the score stage saw it: without target rows if it was told to drop them."""
    if not plan.manifest["config"]["drop_overlap"]:
        return corpus
    target = inputs.read_corpus(restored(plan.folder, plan.manifest["config"]).target, cache, group="subtask")
    return inputs.drop_target_rows(corpus, target, drop=True)


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the stage; returns the run's manifest. Resumes a killed run, reuses a finished one.

    Raises ArtifactError if `out` holds another run.
    """
    out = Path(config.out)
    prepared = prepare(config, _root(config) / "cache")
    if is_done(prepared):
        if dist.is_main():
            logger.info("reused: %s is finished with these settings", out)
            _remove_work(config)
        return read_manifest(out)
    if dist.is_main():
        logger.info(
            "training on %s of %s samples (%s tokens) picked by %s",
            f"{len(prepared.rows):,}", f"{len(prepared.plan):,}",
            f"{int(prepared.side.tokens.num_tokens_N[prepared.rows].sum()):,}", config.artifacts[0],
        )  # fmt: skip
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
        return True
    known = {"plan": found["parents"][0]["digest"], **{k: found.get(k) for k in ("model", "tokenizer")}}
    known["config"] = found["config"]
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
    options = FitOptions(tokenizer=prepared.tokenizer.value, made_from={**made_from, "lora": to_mapping(lora)})
    sampler = PlanSampler(prepared.rows, seed=settings.seed)
    return run_training(build_model, prepared.side.tokens, sampler, settings, out, options=options).num_steps


def _write_manifest(prepared: PreparedRun, out: Path, num_steps: int) -> None:
    paths = [p for p in (out / "model").rglob("*") if p.is_file()] + [out / "ledger.parquet", out / "log.parquet"]
    names = sorted(str(path.relative_to(out)) for path in paths)
    tokens: Tokens = prepared.side.tokens
    write_manifest(
        out,
        {
            "kind": "run",
            "address": prepared.address,
            "method": prepared.plan.manifest["method"],
            "settings": to_mapping(prepared.config.training),
            "corpus": prepared.side.info(),
            "model": prepared.body["model"],
            "tokenizer": prepared.body["tokenizer"],
            "parents": [{"path": prepared.config.artifacts[0], "digest": prepared.plan.manifest["digest"]}],
            "files": [file_entry(out, name) for name in names],
            "config": prepared.body["config"],
            "stats": {
                "selected_rows": len(prepared.rows),
                "selected_tokens": int(tokens.num_tokens_N[prepared.rows].sum()),
                "steps": num_steps,
                "consumed_samples": num_steps * prepared.config.training.global_batch_size,
            },
        },
    )
