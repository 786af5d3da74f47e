"""The score stage: measure what a method needs, let it decide, write the plan. A second run finds everything done."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.manifest import MANIFEST, read_manifest
from dataflex_tools.artifact.plan import PlanRows, check_corpus, load_plan, write_plan
from dataflex_tools.core import dist
from dataflex_tools.core.config import differing_names, to_mapping
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.plan import Selection
from dataflex_tools.core.rng import generator
from dataflex_tools.core.signals import Rows, Signals
from dataflex_tools.core.signals import Side as SideName
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import ScoreConfig, build_method
from dataflex_tools.stages.signals import SignalJob, parent_of, plan_jobs, run_jobs
from dataflex_tools.stages.warmup import Warmup, find_warmup, make_warmup, warmup_spec

logger = logging.getLogger("flextools")


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded."""

    config: ScoreConfig
    method: Any
    root: Path
    tokenizer: inputs.Tokenizer
    pool: inputs.Side
    target: inputs.Side | None
    model_info: Mapping[str, Any]
    warmup_spec: Mapping[str, Any] | None
    warmup: Warmup | None
    warmup_folder: Path | None

    @property
    def sides(self) -> dict[str, inputs.Side]:
        """Both sides by name."""
        return {"pool": self.pool} | ({"target": self.target} if self.target else {})

    @property
    def address(self) -> str:
        """Equal addresses give equal plans; how the work is split into batches and files is no part of it."""
        named_by_content = ("model", "data", "target", "out", "licence")
        config = {k: v for k, v in to_mapping(self.config).items() if k not in named_by_content}
        config["gradient"] = self.config.gradient.address()
        sides = {name: side.corpus.fingerprint for name, side in self.sides.items()}
        groups = digest(self.target.corpus.group_N.tolist()) if self.target else None
        return digest(
            {"config": config, "settings": to_mapping(self.method.settings), "sides": sides, "subtasks": groups,
             "model": self.model_info["sha256"], "load": to_mapping(self.config.model.lora),
             "dtype": self.config.model.dtype, "render": self.pool.tokens.render_digest,
             "reference": read_manifest(Path(self.config.reference))["digest"] if self.config.reference else None}
        )  # fmt: skip

    def jobs(self, warmup: Warmup) -> list[SignalJob]:
        """What the method needs, at each checkpoint."""
        return plan_jobs(self.root, self.method.needs(), warmup, self.config.gradient, self.sides, self.model_info)


def prepare(config: ScoreConfig, cache: Path) -> Prepared:
    """Read the corpora, tokenise them, check the model without loading it, look for what exists."""
    from dataflex_tools.models.load import check_model, model_sha256

    method, root = build_method(config), Path(config.out).parent
    needs_warmup = any(need.at_checkpoints for need in method.needs())
    tokenizer = inputs.Tokenizer.of(config.model)
    if needs_warmup:
        check_model(config.model)
    corpus = inputs.read_corpus(config.data, cache, group="domain")
    target = None
    if config.target:
        target_corpus = inputs.read_corpus(config.target, cache, group="subtask")
        corpus = inputs.drop_target_rows(corpus, target_corpus, drop=config.drop_overlap)
        target = inputs.tokenize(target_corpus, tokenizer, config.render, cache)
        inputs.require_labels(target, config.render.cutoff_len)
    pool = inputs.tokenize(corpus, tokenizer, config.render, cache)
    model_info = {"name": config.model.path, "sha256": model_sha256(config.model), "dtype": config.model.dtype}
    spec = warmup = folder = None
    if needs_warmup:
        spec = warmup_spec(config.model, model_info["sha256"], pool.tokens.render_digest, config.warmup)
        warmup, folder = find_warmup(root, spec, pool, config.warmup)
    return Prepared(config, method, root, tokenizer, pool, target, model_info, spec, warmup, folder)


def is_done(prepared: Prepared, *, overwrite: bool) -> bool:
    """Whether `out` holds exactly this plan. Raises ArtifactError, before anything expensive, if it holds another thing."""
    out = Path(prepared.config.out)
    if not (out / MANIFEST).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ArtifactError(f"{out} holds something that is no artifact; choose another --out")
        return False
    found = read_manifest(out)
    if found.get("address") == prepared.address:
        return True
    if overwrite:
        return False
    now = {"settings": to_mapping(prepared.method.settings), "config": to_mapping(prepared.config)}
    differing = differing_names({key: found.get(key) or {} for key in now}, now)
    what = ", ".join(name for name in differing if name != "config.stage") or "corpus, target or model content"
    raise ArtifactError(
        f"{out} holds another {found['kind']} ({found.get('method')}; differing: {what}); choose another --out, or give "
        "--overwrite to replace it"
    )


def score(config: ScoreConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Run the stage; returns the plan's manifest. A plan that exists with the same address is returned as it is.

    Raises ArtifactError if `out` holds something else, unless `overwrite`.
    """
    prepared = prepare(config, Path(config.out).parent / "cache")
    if is_done(prepared, overwrite=overwrite):
        if dist.is_main():
            logger.info("reused: %s has this plan already", config.out)
        return read_manifest(Path(config.out))
    warmup, jobs = prepared.warmup, list[SignalJob]()
    if prepared.warmup_spec is not None:
        if warmup is not None and dist.is_main():
            logger.info("reused: warm-up %s", warmup.folder.name)
        warmup = warmup or _new_warmup(prepared)
        jobs = prepared.jobs(warmup)
        run_jobs(prepared.root, jobs, config.model, warmup, prepared.tokenizer)
    if dist.is_main():
        selection = prepared.method.select(_signals(prepared, warmup, jobs), rng=generator(config.seed, config.method))
        _write(prepared, selection, warmup, jobs, overwrite=overwrite)
    dist.barrier()
    return read_manifest(Path(config.out))


def _new_warmup(prepared: Prepared) -> Warmup:
    assert prepared.warmup_spec is not None
    assert prepared.warmup_folder is not None
    config = prepared.config
    return make_warmup(
        prepared.warmup_folder, prepared.warmup_spec, prepared.pool, config.model, config.warmup, to_mapping(config)
    )


def _signals(prepared: Prepared, warmup: Warmup | None, jobs: list[SignalJob]) -> Signals:
    rows: dict[tuple[str, SideName], list[Rows]] = {}
    for job in jobs:
        rows.setdefault((job.need.kind, job.need.side), []).append(job.rows())
    return Signals(
        pool=prepared.pool.samples(),
        target=prepared.target.samples() if prepared.target else None,
        rows=rows,
        checkpoint_weight_C=warmup.weight_C if warmup else np.ones(1),
        reference_score_N=_reference(prepared),
    )


def _reference(prepared: Prepared) -> np.ndarray | None:
    if prepared.config.reference is None:
        return None
    plan = load_plan(Path(prepared.config.reference))
    check_corpus(plan, prepared.pool.corpus.fingerprint, prepared.pool.corpus.ids_N16)
    return plan.score_N


def _write(
    prepared: Prepared, selection: Selection, warmup: Warmup | None, jobs: list[SignalJob], *, overwrite: bool
) -> None:
    config, pool = prepared.config, prepared.pool
    parents = ([warmup.parent(prepared.root)] if warmup else []) + [parent_of(prepared.root, job) for job in jobs]
    if config.reference is not None:
        parents.append({"path": config.reference, "digest": read_manifest(Path(config.reference))["digest"]})
    target = {"target": prepared.target.info()} if prepared.target else {}
    facts = {
        "address": prepared.address,
        "method": config.method,
        "settings": to_mapping(prepared.method.settings),
        "corpus": pool.info(),
        "model": prepared.model_info,
        "tokenizer": prepared.tokenizer.info(config.render),
        "parents": parents,
        "stats": {**_stats(selection, pool), **target},
        "config": {"stage": "score", **to_mapping(config)},
        "licence": config.licence,
    }
    rows = PlanRows(pool.corpus.ids_N16, pool.corpus.group_N, pool.corpus.group_names, pool.tokens.num_tokens_N)
    manifest = write_plan(Path(config.out), selection, rows=rows, facts=facts, overwrite=overwrite)
    num_rows = f"{len(pool.corpus):,}"
    logger.info("wrote %s: %s plan, %s rows, %s", config.out, config.method, num_rows, manifest["digest"][:16])


def _stats(selection: Selection, pool: inputs.Side) -> dict[str, Any]:
    finite = selection.score_N[np.isfinite(selection.score_N)]
    quantiles = np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]) if len(finite) else []
    return {
        "rows": len(selection.score_N),
        "selectable": len(finite),
        "score_quantiles": [float(q) for q in quantiles],
        "render_counts": dict(pool.tokens.counts),
    }
