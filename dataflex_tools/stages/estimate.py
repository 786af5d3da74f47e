"""`--dry-run`: what would be computed, what is there already, and about what it costs."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import EvaluateConfig, ScoreConfig, TrainConfig
from dataflex_tools.stages.score import Prepared, is_done, prepare
from dataflex_tools.stages.warmup import rows_of
from dataflex_tools.train.settings import num_steps


@dataclass(frozen=True)
class Estimate:
    """A line per part of the work and the totals: seconds, bytes on disk, bytes in memory; rough by nature."""

    parts: list[dict[str, Any]]
    seconds: float
    disk_bytes: int
    memory_bytes: int


def estimate_score(config: ScoreConfig, *, overwrite: bool = False) -> Estimate:
    """Prepare as the stage would, in a cache that goes away, and add up. Writes nothing."""
    with inputs.cache_folder(Path(config.out).parent, is_dry=True) as cache:
        prepared = prepare(config, cache, overwrite=overwrite)
        is_there = is_done(prepared, overwrite=overwrite)
        parts = [_corpus_part(prepared.pool, "pool")]
        if prepared.target:
            parts.append(_corpus_part(prepared.target, "target"))
        if is_there:
            parts.append({"part": "plan", "what": f"reused: {config.out}", "to_do": 0})
        elif prepared.warmup_spec is not None:
            parts += _model_parts(prepared)
        memory = _memory(prepared) if prepared.warmup_spec is not None and not is_there else 0
    return Estimate(
        parts,
        seconds=sum(part.get("seconds", 0.0) for part in parts),
        disk_bytes=sum(part.get("bytes", 0) for part in parts),
        memory_bytes=memory,
    )


def _corpus_part(side: inputs.Side, name: str) -> dict[str, Any]:
    rows, labelled = len(side.corpus), len(side.tokens.rows_with_labels())
    tokens = int(side.tokens.num_tokens_N.sum())
    return {"part": name, "what": f"{rows:,} rows, {labelled:,} with an answer, {tokens:,} tokens", "to_do": 0}


def _model_parts(prepared: Prepared) -> list[dict[str, Any]]:
    config, warmup = prepared.config, prepared.warmup
    rows = rows_of(prepared.pool, config.warmup)
    training = config.warmup.training
    steps = num_steps(training, len(rows))
    num_epochs = steps * training.global_batch_size / len(rows)
    speed = _flops_per_second()
    size = _num_parameters(prepared)
    warm_tokens = float(prepared.pool.tokens.num_tokens_N[rows].sum()) * num_epochs
    # 4 flops per parameter and token: forward, and backward through frozen weights (no weight gradients)
    cost = 4.0 * size / speed
    if warmup is not None:
        parts = [{"part": "warm-up", "what": f"reused: {warmup.folder.name}", "to_do": 0}]
        work = [(job.title, job.num_missing, job) for job in prepared.jobs(warmup)]
    else:
        what = f"{len(rows):,} samples, {steps:,} steps of {training.global_batch_size}"
        parts = [{"part": "warm-up", "what": what, "to_do": len(rows), "seconds": warm_tokens * cost}]
        num_checkpoints = max(1, round(training.num_train_epochs))
        work = []
        for need in prepared.method.needs():
            side = prepared.sides[need.side]
            count = len(side.tokens.rows_with_labels())
            work += [(f"{need.kind} of {need.side} at checkpoint {c + 1}", count, None) for c in range(num_checkpoints)]
    width = config.gradient.dim * (2 if config.gradient.storage == "float16" else 4) + 32
    for title, count, job in work:
        side = prepared.sides["pool" if "of pool" in title else "target"]
        mean_tokens = float(side.tokens.num_tokens_N.mean())
        what = "reused" if job is not None and count == 0 else f"{count:,} samples"
        parts.append(
            {"part": title, "what": what, "to_do": count, "bytes": count * width, "seconds": count * mean_tokens * cost}
        )
    return parts


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
    from dataflex_tools.stages.train import is_done
    from dataflex_tools.stages.train import prepare as prepare_train

    with inputs.cache_folder(Path(config.out), is_dry=True) as cache:
        prepared = prepare_train(config, cache)
        tokens = prepared.side.tokens.num_tokens_N[prepared.rows]
        steps = num_steps(config.training, len(prepared.rows))
        size = num_parameters(prepared.model)
        # 6 flops per parameter and token when all weights train, 4 with an adapter
        flops = (6.0 if config.full else 4.0) * size * float(tokens.mean()) * steps * config.training.global_batch_size
        picked = f"{len(prepared.rows):,} of {len(prepared.plan):,} samples, {int(tokens.sum()):,} tokens"
        parts: list[dict[str, Any]] = [{"part": "selection", "what": picked, "to_do": 0}]
        if is_done(prepared):
            parts.append({"part": "training", "what": f"reused: {config.out}", "to_do": 0})
        else:
            what = f"{steps:,} steps of {config.training.global_batch_size}"
            parts.append({"part": "training", "what": what, "to_do": steps, "seconds": flops / _flops_per_second()})
    # weights; with all of them trained also gradients and two Adam moments
    memory = (16 if config.full else 4) * size
    return Estimate(parts, sum(part.get("seconds", 0.0) for part in parts), 0, memory)


def estimate_evaluate(config: EvaluateConfig) -> Estimate:
    """What an evaluation would read. Writes nothing."""
    from dataflex_tools.models.load import num_parameters
    from dataflex_tools.stages.evaluate import open_side, train_config

    with inputs.cache_folder(Path(config.run), is_dry=True) as cache:
        train, _ = train_config(Path(config.run))
        assert train.model is not None
        side = open_side(config, train, cache)
        num_tokens, size = int(side.tokens.num_tokens_N.sum()), num_parameters(train.model)
        part = _corpus_part(side, "evaluation data")
        # forward only: 2 flops per parameter and token
        part |= {"to_do": len(side.corpus), "seconds": 2.0 * size * num_tokens / _flops_per_second()}
    return Estimate([part], part["seconds"], 0, 4 * size)
