"""`--dry-run`: what would be computed, what is there already, and about what it costs."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.ids import first_occurrences
from dataflex_tools.artifact.signal import vector_columns
from dataflex_tools.core.mixing import concentration
from dataflex_tools.core.signals import Need
from dataflex_tools.methods import METHODS
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import EvaluateConfig, FitConfig, ScoreConfig, TrainConfig
from dataflex_tools.stages.score import Prepared, is_done, prepare
from dataflex_tools.stages.signals import row_bytes
from dataflex_tools.stages.warmup import rows_of
from dataflex_tools.train.settings import fitted, num_steps


@dataclass(frozen=True)
class Estimate:
    """A line per part of the work and the totals: seconds, bytes on disk, bytes in memory; rough by nature."""

    parts: list[dict[str, Any]]
    seconds: float
    disk_bytes: int
    memory_bytes: int


def estimate_score(config: ScoreConfig, *, overwrite: bool = False) -> Estimate:
    """Prepare as the stage would, in a cache that goes away, and add up. Writes nothing."""
    if METHODS.find(config.method).kind == "mixer":
        return _estimate_mixture(config, overwrite=overwrite)
    with inputs.cache_folder(Path(config.out).parent, is_dry=True) as cache:
        prepared = prepare(config, cache, overwrite=overwrite)
        is_there = is_done(prepared, overwrite=overwrite)
        parts = [_corpus_part(prepared.pool, "pool")]
        if prepared.target:
            parts.append(_corpus_part(prepared.target, "target"))
        if is_there:
            parts.append({"part": "plan", "what": f"reused: {config.out}", "to_do": 0})
        elif prepared.method.needs():
            parts += _model_parts(prepared)
        memory = _memory(prepared) if prepared.method.needs() and not is_there else 0
    return Estimate(
        parts,
        seconds=sum(part.get("seconds", 0.0) for part in parts),
        disk_bytes=sum(part.get("bytes", 0) for part in parts),
        memory_bytes=memory,
    )


def _estimate_mixture(config: ScoreConfig, *, overwrite: bool) -> Estimate:
    from dataflex_tools.models.load import num_parameters
    from dataflex_tools.stages import mix

    with inputs.cache_folder(Path(config.out).parent, is_dry=True) as cache:
        prepared = mix.prepare(config, cache, overwrite=overwrite)
        domains = zip(prepared.domains.names, prepared.domains.num_tokens_K.tolist(), strict=True)
        shares = ", ".join(f"{name} {count:,}" for name, count in domains)
        parts: list[dict[str, Any]] = [{"part": "domains", "what": f"tokens: {shares}", "to_do": 0}]
        is_there = mix.is_done(prepared, overwrite=overwrite)
        if is_there:
            parts.append({"part": "plan", "what": f"reused: {config.out}", "to_do": 0})
        elif (mixture := mix.static_mixture(prepared)) is not None:
            parts.append({"part": "mixture", "what": mix.weights_text(mixture), "to_do": 0})
            found = concentration(mixture.names, mixture.weight_SK[-1]).get("warning")
            parts += [{"part": "warning", "what": found, "to_do": 0}] if found else []
        todo = [] if is_there else mix.trainings(prepared)
        tokens = prepared.text.train
        training = fitted(prepared.config.proxy.training, len(tokens))
        speed, size = _flops_per_second(), num_parameters(config.model)
        consumed = training.max_steps * (training.global_batch_size or 0)
        for title, count, passes in todo:
            # a training step is 6 flops per parameter and token, a forward pass 2
            rows = consumed if passes > 2 else min(consumed, len(tokens))
            seconds = count * passes * size * float(tokens.num_tokens_N.mean()) * rows / speed
            what = f"{count:,} x {training.max_steps:,} steps" if passes > 2 else f"{count:,} x at most {rows:,} rows"
            part = {"part": title, "what": what, "to_do": count, "seconds": seconds}
            labels = float(np.mean(tokens.num_labels_N)) * (2 if config.token_loss.storage == "float16" else 4)
            # token losses; else a checkpoint: weights and two Adam moments
            part["bytes"] = int(rows * labels) if passes <= 2 else 12 * size
            parts.append(part)
    memory = 16 * num_parameters(config.model) if todo else 0
    disk = sum(part.get("bytes", 0) for part in parts)
    return Estimate(parts, sum(part.get("seconds", 0.0) for part in parts), disk, memory)


def _corpus_part(side: inputs.Side, name: str) -> dict[str, Any]:
    rows, labelled = len(side.corpus), len(side.tokens.rows_with_labels())
    tokens = int(side.tokens.num_tokens_N.sum())
    copies = rows - len(first_occurrences(side.corpus.ids_N16))
    more = f", {copies:,} of them copies of others" if copies else ""
    return {"part": name, "what": f"{rows:,} rows{more}, {labelled:,} with an answer, {tokens:,} tokens", "to_do": 0}


def _model_parts(prepared: Prepared) -> list[dict[str, Any]]:
    config, warmup = prepared.config, prepared.warmup
    speed = _flops_per_second()
    size = _num_parameters(prepared)
    # 4 flops per parameter and token: forward, and backward through frozen weights (no weight gradients)
    cost = 4.0 * size / speed
    parts: list[dict[str, Any]] = []
    if warmup is not None:
        parts.append({"part": "warm-up", "what": f"reused: {warmup.folder.name}", "to_do": 0})
    elif prepared.warmup_spec is not None:
        rows = rows_of(prepared.pool, config.warmup)
        training = config.warmup.training
        steps = num_steps(training, len(rows))
        tokens = float(prepared.pool.tokens.num_tokens_N[rows].sum()) * steps * training.global_batch_size / len(rows)
        what = f"{len(rows):,} samples, {steps:,} steps of {training.global_batch_size}"
        parts.append({"part": "warm-up", "what": what, "to_do": len(rows), "seconds": tokens * cost})
    for job in prepared.jobs(warmup):
        tokens = job.num_missing * float(job.kind.side.tokens.num_tokens_N.mean())
        what = f"{job.num_missing:,} samples" if job.num_missing else "reused"
        seconds = tokens * cost * _PASSES.get(job.kind.name, 1.0)
        parts.append({"part": job.title, "what": what, "to_do": job.num_missing, "bytes": job.num_bytes, "seconds": seconds})
    for need in prepared.method.needs():
        if warmup is None and need.at_checkpoints and not need.of_chosen_rows:
            parts += _at_new_checkpoints(prepared, need, cost)
        elif need.of_chosen_rows:
            parts.append({"part": f"{need.kind} of {need.side}", "what": "of rows the method chooses then", "to_do": 1})
    return parts


# cost in units of a forward and backward pass through frozen weights
_PASSES = {"loss": 0.5, "token_loss": 0.5, "embedding": 0.5, "zeroth": 16.0}


def _at_new_checkpoints(prepared: Prepared, need: Need, cost: float) -> list[dict[str, Any]]:
    config, tokens = prepared.config, prepared.side_of(need).tokens
    count = len(tokens.rows_with_labels())
    width = row_bytes(vector_columns(config.gradient.dim, config.gradient.storage)) if "gradient" in need.kind else 32
    seconds = count * float(tokens.num_tokens_N.mean()) * cost * _PASSES.get(need.kind, 1.0)
    return [
        {"part": f"{need.kind} of {need.side} at checkpoint {c + 1}", "what": f"{count:,} samples", "to_do": count,
         "bytes": count * width, "seconds": seconds}
        for c in range(int(config.warmup.training.num_train_epochs))
    ]  # fmt: skip


def _num_parameters(prepared: Prepared) -> int:
    from dataflex_tools.models.load import num_parameters

    return num_parameters(prepared.config.model)


def _memory(prepared: Prepared) -> int:
    # float32 weights and one part of the signal; activations depend on the architecture and are not counted
    config = prepared.config
    return 4 * _num_parameters(prepared) + config.gradient.part_rows * config.gradient.dim * 6


def _flops_per_second() -> float:
    """What this machine does in a small matrix product, halved: models reach about half of it."""
    import torch

    from dataflex_tools.models.load import device

    where = device()
    a = torch.randn(1024, 1024, device=where)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a).sum())  # reading the value waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best / 2


def estimate_train(config: TrainConfig) -> Estimate:
    """Prepare as the train stage would, in a cache that goes away. Writes nothing."""
    from dataflex_tools.models.load import num_parameters
    from dataflex_tools.stages.train import is_done, mixture_line, weights_line
    from dataflex_tools.stages.train import prepare as prepare_train

    with inputs.cache_folder(Path(config.out), is_dry=True) as cache:
        prepared = prepare_train(config, cache)
        tokens = prepared.side.tokens.num_tokens_N[prepared.rows]
        training = fitted(prepared.config.training, prepared.sampler.num_rows)
        steps = num_steps(training, prepared.sampler.num_rows)
        size = num_parameters(prepared.model)
        # 6 flops per parameter and token when all weights train, 4 with an adapter
        full = prepared.config.full
        flops = (6.0 if full else 4.0) * size * float(tokens.mean()) * steps * (training.global_batch_size or 0)
        picked = f"{len(prepared.rows):,} of {len(prepared.side.tokens):,} samples, {int(tokens.sum()):,} tokens"
        if copies := prepared.body.get("copies"):
            picked += f"; {copies:,} rows are copies of others, and a content is taken once"
        parts: list[dict[str, Any]] = [{"part": "selection", "what": picked, "to_do": 0}]
        if (mixture := prepared.plans.mixture) is not None:
            parts.append({"part": "mixture", "what": mixture_line(mixture.mixture, config.mixing.unit), "to_do": 0})
        parts.append({"part": "trained", "what": weights_line(prepared.config), "to_do": 0})
        if is_done(prepared):
            parts.append({"part": "training", "what": f"reused: {config.out}", "to_do": 0})
        else:
            what = f"{steps:,} steps of {training.global_batch_size}"
            parts.append({"part": "training", "what": what, "to_do": steps, "seconds": flops / _flops_per_second()})
    # weights; with all of them trained also gradients and two Adam moments
    memory = (16 if full else 4) * size
    return Estimate(parts, sum(part.get("seconds", 0.0) for part in parts), 0, memory)


# seconds to fit 512 runs of 17 domains six times, once without each fold, and to search, on one core (measured)
_FIT_SECONDS = {"gaussian_process": 76.0, "gradient_boosting": 12.0, "linear": 3.0}


def estimate_fit(config: FitConfig, *, overwrite: bool = False) -> Estimate:
    """Read the tables and say what would be fitted. Writes nothing."""
    from dataflex_tools.stages import fit

    prepared = fit.prepare(config, overwrite=overwrite)
    num_runs, num_domains = prepared.runs.weight_SK.shape
    what = f"{num_runs:,} runs of {num_domains} domains; {'; '.join(prepared.notes)}"
    parts: list[dict[str, Any]] = [{"part": "runs", "what": what, "to_do": 0}]
    if fit.is_done(prepared, overwrite=overwrite):
        parts.append({"part": "plan", "what": f"reused: {config.out}", "to_do": 0})
    else:
        seconds = _FIT_SECONDS[prepared.settings.regressor] * (num_runs / 512) ** 2 * num_domains / 17
        what = f"{prepared.settings.regressor}, {prepared.settings.num_folds + 1} times"
        parts.append({"part": "fit", "what": what, "to_do": num_runs, "seconds": seconds})
    return Estimate(parts, sum(part.get("seconds", 0.0) for part in parts), 0, 0)


def estimate_evaluate(config: EvaluateConfig) -> Estimate:
    """What an evaluation would read. Writes nothing."""
    from dataflex_tools.models.load import num_parameters
    from dataflex_tools.stages.evaluate import open_side, train_config

    with inputs.cache_folder(Path(config.run), is_dry=True) as cache:
        train, _ = train_config(Path(config.run), trust_remote_code=config.trust_remote_code)
        assert train.model is not None
        side = open_side(config, train, cache)
        num_tokens, size = int(side.tokens.num_tokens_N.sum()), num_parameters(train.model)
        part = _corpus_part(side, "evaluation data")
        # forward only: 2 flops per parameter and token
        part |= {"to_do": len(side.corpus), "seconds": 2.0 * size * num_tokens / _flops_per_second()}
    return Estimate([part], part["seconds"], 0, 4 * size)
