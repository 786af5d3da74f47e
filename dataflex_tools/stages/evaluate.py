"""The evaluate stage: loss and perplexity per group of samples under a run's model."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.files import write_bytes
from dataflex_tools.artifact.manifest import MANIFEST, check_file, read_manifest
from dataflex_tools.core import dist
from dataflex_tools.core.config import to_mapping
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.data.sources import check_exists
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import EvaluateConfig, TrainConfig, restored

logger = logging.getLogger("flextools")

_CPU_TOKENS = 4096  # padded tokens of a batch; no gradients, so twice what scoring takes


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Losses of `data` under the run's model, written to `run`/`name`.json and returned; reused if it is there.

    {"groups": {name: {samples, tokens, loss, perplexity}}, "all": {...}, "macro_loss"}: loss in nats per label token,
    all tokens of a group weighing the same; macro_loss is the mean over groups.
    """
    run = Path(config.run)
    train, manifest = train_config(run)
    assert train.model is not None
    for source in config.data:
        check_exists(source)
    check_run(run, train.model, manifest)
    side = open_side(config, train, Path(train.artifacts[0]).parent / "cache")
    address = digest(
        {"run": manifest["digest"], "corpus": side.corpus.fingerprint, "groups": side.tokens.group_N.tolist(),
         "names": side.tokens.group_names, "render": side.tokens.render_digest}
    )  # fmt: skip
    path = run / f"{config.name}.json"
    if dist.is_main() and not _is_there(path, address):
        body = {"address": address, "config": {"stage": "evaluate", **to_mapping(config)}}
        result = {**body, **_measure(run, train, train.model, side, config)}
        write_bytes(path, (json.dumps(result, indent=2) + "\n").encode())
    dist.barrier()
    return _read_result(path)


def _is_there(path: Path, address: str) -> bool:
    if not path.exists():
        return False
    if _read_result(path).get("address") != address:
        raise ArtifactError(f"{path} holds an evaluation of other data; choose another --name")
    logger.info("reused: %s", path)
    return True


def _read_result(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} holds something that is no evaluation; choose another --name, or remove it")
    return found


def check_run(run: Path, model: ModelSettings, manifest: Mapping[str, Any]) -> None:
    """Raise ArtifactError unless the run's files and its base model are those the training ended with."""
    from dataflex_tools.models.load import model_sha256

    for entry in manifest["files"]:
        if entry["path"].startswith("model/"):
            check_file(run, manifest, entry["path"])
    if (found := model_sha256(model)) != (wanted := manifest["model"]["sha256"]):
        raise ArtifactError(
            f"{run} was trained from {model.path} with weights {wanted[:16]}, the weights there are {found[:16]} now; "
            "restore them, or train again into another --out"
        )


def open_side(config: EvaluateConfig, train: TrainConfig, cache: Path) -> inputs.Side:
    """The evaluation data, tokenised as the run's was unless told otherwise."""
    render = config.render or train.render
    assert train.model is not None
    assert render is not None
    corpus = inputs.read_corpus(config.data, cache, group="domain")
    tokenizer = inputs.Tokenizer.of(train.model)
    side = inputs.tokenize(corpus, tokenizer, render, cache)
    inputs.check_vocabulary(side, tokenizer, train.model)
    return side


def train_config(run: Path) -> tuple[TrainConfig, Mapping[str, Any]]:
    """(the settings a finished run was made with, its manifest). Raises ArtifactError if it is not finished."""
    if run.exists() and not (run / MANIFEST).exists():
        raise ArtifactError(f"{run} has no {MANIFEST}: it is no finished run; finish it with `flextools train` first")
    manifest = read_manifest(run)
    if manifest["kind"] != "run":
        raise ArtifactError(f"{run} is an artifact of kind {manifest['kind']!r}, wanted a run of `flextools train`")
    return restored(run, manifest["config"]), manifest


def _measure(
    run: Path, train: TrainConfig, model: ModelSettings, side: inputs.Side, config: EvaluateConfig
) -> dict[str, Any]:
    from dataflex_tools.score.losses import sample_losses

    rows = side.tokens.rows_with_labels()
    if skipped := len(side.tokens) - len(rows):
        logger.warning("%d of %d rows have no answer token and are not evaluated", skipped, len(side.tokens))
    budget = config.token_budget or _CPU_TOKENS
    sum_N, count_N = sample_losses(_trained(run, train, model), side.tokens, rows, token_budget=budget)
    if not np.isfinite(sum_N).all():
        bad = rows[~np.isfinite(sum_N)]
        raise ConfigError(f"the loss of {len(bad)} rows is not finite (first: row {bad[0]}); the run has diverged")
    group_N = side.tokens.group_N[rows]
    groups = {
        name: _summary(sum_N[group_N == code], count_N[group_N == code])
        for code, name in enumerate(side.tokens.group_names)
        if (group_N == code).any()
    }
    macro = float(np.mean([item["loss"] for item in groups.values()]))
    return {"groups": groups, "all": _summary(sum_N, count_N), "macro_loss": macro}


def _trained(run: Path, train: TrainConfig, model: ModelSettings) -> Any:
    from dataclasses import replace

    from dataflex_tools.models.load import device, load_model
    from dataflex_tools.models.lora import load_adapter

    if train.full:
        return load_model(replace(model, path=str(run / "model"), revision=None, random_weights=False)).to(device())
    return load_adapter(load_model(model), run / "model", trainable=False).to(device())


def _summary(sum_N: np.ndarray, count_N: np.ndarray) -> dict[str, Any]:
    loss = float(sum_N.sum() / count_N.sum())
    return {
        "samples": len(sum_N),
        "tokens": int(count_N.sum()),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # exp overflows beyond 709
    }
