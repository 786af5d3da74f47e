"""The score stage: measure what a method needs, let it decide, write the plan. A second run finds everything done."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.ids import first_occurrences
from dataflex_tools.artifact.manifest import MANIFEST, check_files, read_manifest, read_unchecked
from dataflex_tools.artifact.plan import LoadedPlan, PlanRows, check_corpus, check_out, load_plan, write_plan
from dataflex_tools.artifact.signal import vector_columns
from dataflex_tools.core import dist
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.config import differences, to_mapping
from dataflex_tools.core.errors import ArtifactError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.core.plan import RECOMMENDED, Budget, Selection
from dataflex_tools.core.rng import generator
from dataflex_tools.core.signals import Need, Rows, Signals
from dataflex_tools.core.signals import Side as SideName
from dataflex_tools.data.sources import check_exists
from dataflex_tools.methods import METHODS
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import ScoreConfig, build_method, recorded, without_code
from dataflex_tools.stages.kinds import KINDS, Context, settings_of
from dataflex_tools.stages.signals import (
    SignalJob,
    check_measurable,
    check_space,
    parent_of,
    plan_jobs,
    row_bytes,
    run_jobs,
)
from dataflex_tools.stages.warmup import Warmup, check_rates, find_warmup, make_warmup, rows_of, warmup_spec
from dataflex_tools.train.settings import WarmupSettings, fitted_warmup

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
    reference: LoadedPlan | None

    answers: inputs.Side | None
    cache: Path

    @property
    def context(self) -> Context:
        """What the kinds of signals look at."""
        return Context(self.config, self.model_info, self.tokenizer, self.cache)

    def side_of(self, need: Need) -> inputs.Side:
        """The samples a need is about; for `loss_alone` the pool's answers without their prompts."""
        side = self.answers if need.kind == "loss_alone" else {"pool": self.pool, "target": self.target}[need.side]
        assert side is not None
        return side

    @property
    def address(self) -> str:
        """Equal addresses give equal plans; how the work is split into batches and files is no part of it."""
        target = self.target and [self.target.corpus.fingerprint, digest(self.target.corpus.group_N.tolist())]
        # copies of a sample were scored each by itself before
        alike = self.method.scores_copies_alike and self.pool.samples().copy_of_N is not None
        base = [KINDS[n.kind](self.context, n, self.side_of(n), None).spec() for n in self.method.needs()]
        return digest(
            {"method": self.config.method, "settings": to_mapping(self.method.settings), "seed": self.config.seed,
             "pool": self.pool.corpus.fingerprint, "target": target, "signals": base, "warmup": self.warmup_spec,
             "model": self.model_info["sha256"], "dtype": self.config.model.dtype,
             "render": self.pool.tokens.render_digest,
             "reference": self.reference.manifest["digest"] if self.reference else None,
             **({"copies": "alike"} if alike else {}), **self._rates(), **self._budget()}
        )  # fmt: skip

    def _rates(self) -> dict[str, str]:
        """Named where an earlier version weighed the warm-up's checkpoints otherwise: by the rates after the steps."""
        training = self.config.warmup.training
        is_flat = training.lr_scheduler_type == "constant" or training.num_train_epochs == 1
        return {} if self.warmup_spec is None or is_flat else {"rates": "taken"}

    def _budget(self) -> dict[str, Any]:
        """What the plan recommends, where that is not the default."""
        return {"budget": to_mapping(self.budget)} if self.budget != RECOMMENDED else {}

    @property
    def budget(self) -> Budget:
        """How much of the pool the plan recommends to train on."""
        return self.config.budget or RECOMMENDED

    def jobs(
        self, warmup: Warmup | None, chosen: Mapping[tuple[str, SideName], np.ndarray] | None = None
    ) -> list[SignalJob]:
        """What the method needs of all rows, at each checkpoint; given `chosen` rows, what it needs of these."""
        needs = [need for need in self.method.needs() if need.of_chosen_rows == (chosen is not None)]
        rows = [chosen[need.kind, need.side] if chosen is not None else None for need in needs]
        return plan_jobs(self.root, list(zip(needs, rows, strict=True)), warmup, self.context, self.side_of)


def prepare(config: ScoreConfig, cache: Path, *, overwrite: bool = False) -> Prepared:
    """Read the corpora, tokenise them, check the model without loading it, look for what exists."""
    from dataflex_tools.models.load import model_sha256

    method, root = build_method(config), Path(config.out).parent
    needs_warmup = any(need.at_checkpoints for need in method.needs())
    check_out(Path(config.out), overwrite=overwrite)
    check_settings(config)
    reference = load_plan(Path(config.reference)) if config.reference is not None else None
    model_info = {"name": config.model.path, "sha256": model_sha256(config.model), "dtype": config.model.dtype}
    tokenizer = inputs.Tokenizer.of(config.model)
    target = None
    if config.target:  # small, and wrong more often than the pool: it goes first
        target_corpus = inputs.read_corpus(config.target, cache, group="subtask")
        target = inputs.tokenize(target_corpus, tokenizer, config.render, cache)
        target = inputs.with_labels(target, tokenizer, config.render, cache)
    corpus = inputs.read_corpus(config.data, cache, group="domain")
    if target is not None:
        corpus = inputs.drop_target_rows(corpus, target.corpus, drop=config.drop_overlap)
    pool = inputs.tokenize(corpus, tokenizer, config.render, cache)
    answers = None
    if any(need.kind == "loss_alone" for need in method.needs()):
        answers = inputs.tokenize(pool.corpus, tokenizer, replace(config.render, answer_only=True), cache)
        if len(answers.tokens.left_out_B):  # an answer without a header is a row of neither
            pool = inputs.tokenize(answers.corpus, tokenizer, config.render, cache)
    if reference is not None:
        check_corpus(reference, pool.corpus.fingerprint, pool.corpus.ids_N16)
    if method.needs():
        for side in (pool, *([target] if target else [])):
            inputs.check_fits(side, tokenizer, config.model)
    if target is not None and config.reward_gradient is not None:
        drawn = config.reward_gradient.generation.max_new_tokens
        inputs.check_positions(target, config.model, num_new=drawn)
    spec = warmup = folder = None
    if needs_warmup:
        config = replace(config, warmup=_fitted_warmup(config.warmup, pool))
        spec = warmup_spec(config.model, model_info["sha256"], pool.tokens.render_digest, config.warmup)
        check_rates(config.warmup, len(rows_of(pool, config.warmup)))
        warmup, folder = find_warmup(root, spec, pool, config.warmup)
    return Prepared(
        config, method, root, tokenizer, pool, target, model_info, spec, warmup, folder, reference, answers, cache
    )  # fmt: skip


def _fitted_warmup(settings: WarmupSettings, pool: inputs.Side) -> WarmupSettings:
    """The warm-up's settings for this pool; says so if its size decided them."""
    num_rows = len(pool.tokens.rows_with_labels())
    found, usual = fitted_warmup(settings, num_rows), fitted_warmup(settings, 10**9)
    if found != usual and dist.is_main():
        logger.info(
            "warm-up: %g of %s rows in batches of %d, since %g would be less than a batch of %d (warmup.fraction, "
            "warmup.training.global_batch_size)",
            found.fraction,
            f"{num_rows:,}",
            found.training.global_batch_size,
            usual.fraction,
            usual.training.global_batch_size,
        )
    return found


def check_settings(config: ScoreConfig) -> None:
    """Raise for what can be seen to be wrong before any data is read: absent sources, model, LoRA targets, warm-up."""
    from dataflex_tools.models.load import check_model
    from dataflex_tools.models.sentence import check_sentence_model
    from dataflex_tools.train.settings import check_training

    for source in (*config.target, *config.data):
        check_exists(source)
    needs = build_method(config).needs()
    for need in needs:
        settings_of(need, config)
    if any(need.at_checkpoints for need in needs):
        check_training(config.warmup.training, world_size=dist.world_size(), where="warmup.training")
        check_model(config.model)
    if any(need.kind in ("gradient", "reward_gradient") for need in needs):
        check_measurable(config.model)
    if config.embedding.model is not None and any(need.kind == "embedding" for need in needs):
        check_sentence_model(config.embedding.model)


def is_done(prepared: Prepared, *, overwrite: bool) -> bool:
    """Whether `out` holds exactly this plan. Raises ArtifactError, before anything expensive, if it holds another one."""
    out = Path(prepared.config.out)
    if not (out / MANIFEST).exists():
        return False
    found = read_unchecked(out)
    is_same = found.get("address") == prepared.address
    try:
        read_manifest(out)
        if is_same:
            check_files(out, found)
    except ArtifactError:
        if overwrite:
            return False
        raise
    if is_same or overwrite:
        return is_same
    raise ArtifactError(
        f"{out} holds another plan ({found['method']}; {_differing(found, prepared)}); choose another --out, or give "
        "--overwrite to replace it"
    )


def _differing(found: Mapping[str, Any], prepared: Prepared) -> str:
    """What makes the plan in `found` another one: settings with both values, contents by name."""
    by_content = ("stage", "out", "licence", "data", "target", "reference")

    def settings(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in config.items() if key not in by_content}
        model = {key: value for key, value in (config.get("model") or {}).items() if key not in ("path", "revision")}
        return {**kept, "model": model, "settings": own}

    now = settings(without_code(recorded(prepared.config)), to_mapping(prepared.method.settings))
    names = differences(settings(found["config"], found["settings"]), now)
    targets = [(found["stats"].get("target") or {}).get("fingerprint")]
    contents = {
        "the pool's content": found["corpus"]["fingerprint"] == prepared.pool.corpus.fingerprint,
        "the target's content": targets == [prepared.target.corpus.fingerprint if prepared.target else None],
        "the model's weights": (found["model"] or {}).get("sha256") == prepared.model_info["sha256"],
    }
    names += [name for name, is_equal in contents.items() if not is_equal]
    unnamed = "tokenizer, subtasks, reference, how copies of a sample are scored, or checkpoints are weighed"
    return f"differing: {', '.join(names) or unnamed}"


def score(config: ScoreConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Run the stage; returns the plan's manifest. A plan that exists with the same address is returned as it is.

    Waits while another process works on `out`. Raises ArtifactError if it holds something else, unless `overwrite`.
    """
    if METHODS.find(config.method).kind == "mixer":
        from dataflex_tools.stages.mix import score_mixture

        return score_mixture(config, overwrite=overwrite)
    prepared = prepare(config, cache_folder(Path(config.out).parent), overwrite=overwrite)
    with hold_for_all(Path(config.out), f"score {config.method}"):
        return _score(prepared, overwrite=overwrite)


def _score(prepared: Prepared, *, overwrite: bool) -> dict[str, Any]:
    config = prepared.config
    is_there = is_done(prepared, overwrite=overwrite)
    dist.barrier()  # no rank writes before all have looked
    if is_there:
        if dist.is_main():
            logger.info("reused: %s has this plan already", config.out)
        return read_manifest(Path(config.out))
    warmup = _warmup(prepared)
    jobs = prepared.jobs(warmup)
    check_space(prepared.root, sum(job.num_bytes for job in jobs))
    run_jobs(prepared.root, jobs, prepared.context, warmup)
    signals = _signals(prepared, warmup, jobs)
    if any(need.of_chosen_rows for need in prepared.method.needs()):
        chosen = dist.broadcast(prepared.method.rows_needed(signals) if dist.is_main() else None)
        more = prepared.jobs(warmup, chosen)
        run_jobs(prepared.root, more, prepared.context, warmup)
        found = _signals(prepared, warmup, more)
        signals = replace(signals, rows={**signals.rows, **found.rows}, columns={**signals.columns, **found.columns})
        jobs += more
    if dist.is_main():
        selection = prepared.method.select(signals, rng=generator(config.seed, config.method))
        _write(prepared, selection, warmup, jobs, overwrite=overwrite)
    dist.barrier()
    return read_manifest(Path(config.out))


def _warmup(prepared: Prepared) -> Warmup | None:
    """The warm-up if the method needs one: found, or trained now."""
    if prepared.warmup_spec is None:
        return None
    assert prepared.warmup_folder is not None
    with hold_for_all(prepared.warmup_folder, "warm-up"):
        found = _found_warmup(prepared)
        if found is None:
            return _new_warmup(prepared)
    if dist.is_main():
        logger.info("reused: warm-up %s", found.folder.name)
    return found


def _found_warmup(prepared: Prepared) -> Warmup | None:
    """The warm-up that is there, looked for again: another process may have made it meanwhile; rank 0 decides."""
    folder = prepared.warmup.folder if prepared.warmup is not None else None
    if folder is None and dist.is_main():
        assert prepared.warmup_spec is not None
        found, _ = find_warmup(prepared.root, prepared.warmup_spec, prepared.pool, prepared.config.warmup)
        folder = found.folder if found is not None else None
    folder = dist.broadcast(folder)
    return Warmup(folder, read_manifest(folder)) if folder is not None else None


def _new_warmup(prepared: Prepared) -> Warmup:
    config, num_bytes = prepared.config, 0
    for need in prepared.method.needs():
        if need.at_checkpoints and need.kind == "gradient" and config.gradient.projection != "none":
            rows = len(prepared.side_of(need).tokens.rows_with_labels()) * int(config.warmup.training.num_train_epochs)
            num_bytes += rows * row_bytes(vector_columns(config.gradient.dim, config.gradient.storage))
    check_space(prepared.root, num_bytes)
    assert prepared.warmup_spec is not None
    assert prepared.warmup_folder is not None
    return make_warmup(prepared.warmup_folder, prepared.warmup_spec, prepared.pool, config.model, config.warmup)


def _signals(prepared: Prepared, warmup: Warmup | None, jobs: list[SignalJob]) -> Signals:
    rows: dict[tuple[str, SideName], list[Rows]] = {}
    columns: dict[tuple[str, SideName], list[dict[str, np.ndarray]]] = {}
    for job in jobs:
        value, key = job.read(), (job.kind.need.kind, job.kind.need.side)
        if isinstance(value, dict):
            columns.setdefault(key, []).append(value)
        else:
            rows.setdefault(key, []).append(value)
    return Signals(
        pool=prepared.pool.samples(),
        target=prepared.target.samples() if prepared.target else None,
        rows=rows,
        columns=columns,
        checkpoint_weight_C=warmup.weight_C if warmup else np.ones(1),
        reference_score_N=prepared.reference.score_N if prepared.reference else None,
    )


def _write(
    prepared: Prepared, selection: Selection, warmup: Warmup | None, jobs: list[SignalJob], *, overwrite: bool
) -> None:
    config, pool = prepared.config, prepared.pool
    parents = ([warmup.parent(prepared.root)] if warmup else []) + [parent_of(prepared.root, job) for job in jobs]
    if prepared.reference is not None:
        parents.append({"path": str(prepared.reference.folder), "digest": prepared.reference.manifest["digest"]})
    target = {"target": prepared.target.info()} if prepared.target else {}
    facts = {
        "address": prepared.address,
        "method": config.method,
        "settings": to_mapping(prepared.method.settings),
        "corpus": pool.info(),
        "model": prepared.model_info,
        "tokenizer": prepared.tokenizer.info(config.render),
        "parents": parents,
        "budget": to_mapping(prepared.budget),
        "stats": {**_stats(selection, pool), **target, "facts": dict(selection.facts)},
        "config": without_code(recorded(config)),
        "licence": config.licence,
    }
    rows = PlanRows(pool.corpus.ids_N16, pool.corpus.group_N, pool.corpus.group_names, pool.tokens.num_tokens_N)
    manifest = write_plan(Path(config.out), selection, rows=rows, facts=facts, overwrite=overwrite)
    num_rows = f"{len(pool.corpus):,}"
    logger.info("wrote %s: %s plan, %s rows, %s", config.out, config.method, num_rows, manifest["digest"][:16])


def _stats(selection: Selection, pool: inputs.Side) -> dict[str, Any]:
    finite = selection.score_N[np.isfinite(selection.score_N)]
    quantiles = np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]) if len(finite) else []
    copies = len(pool.corpus) - len(first_occurrences(pool.corpus.ids_N16))
    return {
        "rows": len(selection.score_N),
        "selectable": len(finite),
        "score_quantiles": [float(q) for q in quantiles],
        "render_counts": dict(pool.tokens.counts),
        **({"copies": copies} if copies else {}),
        **({"warnings": list(selection.facts["warnings"])} if "warnings" in selection.facts else {}),
    }
