"""The evaluate stage: loss, perplexity and bits per byte per group of samples under a run's model."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex_tools.artifact.files import require_finite, write_json, write_table
from dataflex_tools.artifact.manifest import MANIFEST, check_file, read_manifest
from dataflex_tools.core import dist
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.config import to_mapping
from dataflex_tools.core.errors import ArtifactError, ConfigError, DataError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.data.sources import check_exists
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import EvaluateConfig, TrainConfig, restored, without_code

logger = logging.getLogger("flextools")

_CPU_TOKENS = 4096  # padded tokens of a batch; no gradients, so twice what scoring takes


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Losses of `data` under the run's model, written to `run`/`name`.json and .parquet and returned; reused if it is there.

    {"groups": {name: {samples, tokens, bytes, loss, perplexity, bits_per_byte}}, "all": {...}, "macro_loss", "worst"}: loss
    in nats per label token, all tokens of a group weighing the same; bits per UTF-8 byte of the text they stand for, which
    compares models with different tokenizers; macro_loss is the mean over groups, worst the group with the largest loss.
    """
    run = Path(config.run)
    train, manifest = train_config(run, trust_remote_code=config.trust_remote_code)
    assert train.model is not None
    for source in config.data:
        check_exists(source)
    if dist.is_main():
        logger.info("evaluating %s, trained from %s, which it names", run, train.model.path)
    check_run(run, train.model, manifest)
    side = open_side(config, train, cache_folder(Path(train.artifacts[0]).parent))
    address = digest(
        {"format": 2, "run": manifest["digest"], "corpus": side.corpus.fingerprint, "groups": side.tokens.group_N.tolist(),
         "names": side.tokens.group_names, "render": side.tokens.render_digest}
    )  # fmt: skip
    path = run / f"{config.name}.json"
    with hold_for_all(run, f"evaluate, {config.name}"):
        if dist.is_main() and not _is_there(path, address):
            body = {
                "address": address,
                "data": inputs.rows_digest(side.tokens),
                "config": without_code({"stage": "evaluate", **to_mapping(config)}),
            }
            result = {**body, **_measure(run, train, side, config)}
            require_finite(path, result)
            write_table(path.with_suffix(".parquet"), _groups_table(result), rows_per_group=2**16)
            write_json(path, result, indent=2, end="\n")
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
    """The evaluation data, tokenised as the run's was unless told otherwise; the run's held-out text if none is given."""
    render = config.render or train.render
    assert train.model is not None
    assert render is not None
    if config.render is not None and train.pack is not None:
        raise ConfigError("evaluate: render has no effect on packed text; leave it out")
    tokenizer = inputs.Tokenizer.of(train.model)
    if not config.data:
        side = _own_held_out(train, tokenizer, cache)
    elif train.pack is not None:
        corpus = inputs.read_corpus(config.data, cache, group="domain")
        _refuse_trained(config, corpus, train, cache)
        side = inputs.pack_all(corpus, tokenizer, train.pack, cache)
    else:
        side = inputs.tokenize(inputs.read_corpus(config.data, cache, group="domain"), tokenizer, render, cache)
    inputs.check_fits(side, tokenizer, train.model)
    return side


def _own_held_out(train: TrainConfig, tokenizer: inputs.Tokenizer, cache: Path) -> inputs.Side:
    if train.pack is None or not train.pack.held_out:
        raise ConfigError(
            "evaluate: data is empty, and the run held no text out (pack.held_out); give --data FILE, FOLDER or "
            "HUB_NAME:SPLIT"
        )
    assert train.render is not None
    text = inputs.read_text(train.data, tokenizer, train.render, train.pack, cache)
    return inputs.Side(text.side.corpus, text.held_out)


def _refuse_trained(config: EvaluateConfig, corpus: Any, train: TrainConfig, cache: Path) -> None:
    """Raise DataError if a document of the evaluation data was trained on."""
    from dataflex_tools.data.corpus import overlap
    from dataflex_tools.data.packed import is_held_out

    assert train.pack is not None
    pool = inputs.read_corpus(train.data, cache, group="domain")
    trained = pool.without(np.flatnonzero(is_held_out(pool.ids_N16, train.pack)))
    if len(rows := overlap(corpus, trained)):
        raise DataError(
            f"{len(rows):,} of {len(corpus):,} evaluation documents were trained on (first: {corpus.place(int(rows[0]))}): "
            "what is measured would be memory; give other text, or leave --data out to use the run's held-out part"
        )


def train_config(run: Path, *, trust_remote_code: bool = False) -> tuple[TrainConfig, Mapping[str, Any]]:
    """(the settings a finished run was made with, its manifest). Raises ArtifactError if it is not finished."""
    if run.exists() and not (run / MANIFEST).exists():
        raise ArtifactError(f"{run} has no {MANIFEST}: it is no finished run; finish it with `flextools train` first")
    manifest = read_manifest(run)
    if manifest["kind"] != "run":
        raise ArtifactError(f"{run} is an artifact of kind {manifest['kind']!r}, wanted a run of `flextools train`")
    config: TrainConfig = restored(run, manifest["config"])
    assert config.model is not None
    return replace(config, model=replace(config.model, trust_remote_code=trust_remote_code)), manifest


def _measure(run: Path, train: TrainConfig, side: inputs.Side, config: EvaluateConfig) -> dict[str, Any]:
    from dataflex_tools.data.text_bytes import label_bytes
    from dataflex_tools.score.held_out import reporting_rows
    from dataflex_tools.score.losses import sample_losses

    assert train.model is not None
    tokens = side.tokens
    rows = tokens.rows_with_labels() if config.data else reporting_rows(tokens)
    if skipped := len(tokens) - len(tokens.rows_with_labels()):
        logger.warning("%d of %d rows have no answer token and are not evaluated", skipped, len(tokens))
    budget = config.token_budget or _CPU_TOKENS
    sum_N, count_N = sample_losses(_trained(run, train, train.model), tokens, rows, token_budget=budget)
    if not np.isfinite(sum_N).all():
        bad = rows[~np.isfinite(sum_N)]
        raise ConfigError(f"the loss of {len(bad)} rows is not finite (first: row {bad[0]}); the run has diverged")
    measured_3N = np.stack([sum_N, count_N, label_bytes(tokens, rows, inputs.Tokenizer.of(train.model).value)])
    group_N = tokens.group_N[rows]
    groups = {
        name: _summary(measured_3N[:, group_N == code])
        for code, name in enumerate(tokens.group_names)
        if (group_N == code).any()
    }
    losses = {name: item["loss"] for name, item in groups.items()}
    macro, worst = float(np.mean(list(losses.values()))), max(losses, key=lambda name: losses[name])
    return {"groups": groups, "all": _summary(measured_3N), "macro_loss": macro, "worst": worst}


def _trained(run: Path, train: TrainConfig, model: ModelSettings) -> Any:
    from dataflex_tools.models.load import device, load_model
    from dataflex_tools.models.lora import load_adapter

    if train.full:
        return load_model(replace(model, path=str(run / "model"), revision=None, random_weights=False)).to(device())
    return load_adapter(load_model(model), run / "model", trainable=False).to(device())


def _summary(measured_3N: np.ndarray) -> dict[str, Any]:
    """Of samples given as (nats, label tokens, bytes)."""
    nats, num_tokens, num_bytes = measured_3N.sum(axis=1).tolist()
    loss = nats / num_tokens
    return {
        "samples": measured_3N.shape[1],
        "tokens": int(num_tokens),
        "bytes": int(num_bytes),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # exp overflows beyond 709
        "bits_per_byte": nats / math.log(2) / num_bytes if num_bytes else None,  # answers of special tokens alone have none
    }


def _groups_table(result: Mapping[str, Any]) -> pa.Table:
    """A row per group, with the columns of a summary."""
    columns: dict[str, Any] = {"group": list(result["groups"])}
    for name, kind in (("samples", pa.int64()), ("tokens", pa.int64()), ("bytes", pa.int64()), ("loss", pa.float64()),
                       ("perplexity", pa.float64()), ("bits_per_byte", pa.float64())):  # fmt: skip
        columns[name] = pa.array([item[name] for item in result["groups"].values()], kind)
    return pa.table(columns)
