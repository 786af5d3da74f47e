"""The small models a mixer trains on the way: references with their token losses, proxies with a mixer in the loop, swarms.

Each is an artifact of its own and found again: models under `models/`, token losses under `signals/`. A killed training goes
on where it stood.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.files import remove_leftovers, write_json
from dataflex_tools.artifact.manifest import (
    MANIFEST,
    check_file,
    check_files,
    file_entry,
    read_manifest,
    write_manifest,
)
from dataflex_tools.artifact.schema import read_json
from dataflex_tools.artifact.signal import SignalStore, signal_folder
from dataflex_tools.core import dist
from dataflex_tools.core.config import to_mapping
from dataflex_tools.core.errors import ArtifactError, DataError
from dataflex_tools.core.fingerprint import digest
from dataflex_tools.core.hashes import digests_in
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.core.mixing import Domains, MixState, Mixture, Observation
from dataflex_tools.core.rng import generator
from dataflex_tools.methods.base import OnlineMixer, StaticMixer, SwarmMixer
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import ScoreConfig, is_by_held_out

logger = logging.getLogger("flextools")

# K domains, S trainings of a swarm

_STATES = "states.json"


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is trained."""

    config: ScoreConfig
    method: Any
    text: inputs.Text
    tokenizer: inputs.Tokenizer
    domains: Domains
    model_info: Mapping[str, Any]
    cache: Path

    @property
    def root(self) -> Path:
        """Where models and signals go: beside the plan."""
        return Path(self.config.out).parent

    @property
    def base(self) -> dict[str, Any]:
        """What every small model depends on."""
        from dataflex_tools.train.run import deciding

        return {
            "model": self.model_info["sha256"], "dtype": self.config.model.dtype, "corpus": self.text.train_digest,
            "render": self.text.train.render_digest, "training": deciding(self.config.proxy.training),
            **inputs.router_rule(self.config.model),
        }  # fmt: skip

    @property
    def address(self) -> str:
        """Equal addresses give equal mixtures."""
        own: dict[str, Any] = {"method": self.config.method, "settings": to_mapping(self.method.settings)}
        if not isinstance(self.method, OnlineMixer):
            own["seed"] = self.config.seed
        if isinstance(self.method, StaticMixer):
            return digest(own | {"corpus": self.text.train_digest})
        if is_by_held_out(type(self.method)):
            own |= {"held_out_rows": self.config.proxy.held_out_rows, "held_out": self.text.held_out_digest}
        return digest(own | self.base | {"reference": _reference_address(self.config, self.method)})


def _reference_address(config: ScoreConfig, method: Any) -> Any:
    """What the reference's losses depend on besides the data, None for a mixer that compares with none."""
    from dataflex_tools.models.load import model_sha256

    if not isinstance(method, OnlineMixer) or method.observes != "excess_loss":
        return None
    if config.proxy.reference_losses is not None:
        return read_manifest(Path(config.proxy.reference_losses)).get("spec_digest")
    model = config.proxy.reference_model
    given = [model_sha256(model), model.dtype] if model is not None else None
    return [given, config.token_loss.address()]


def reference_losses(prepared: Prepared, weight_K: np.ndarray, parents: list[dict[str, str]]) -> Any:
    """The token losses of a reference: given, or measured with a model that is given, or trained on these weights."""
    from dataflex_tools.train.reference import TokenLosses

    proxy, tokens = prepared.config.proxy, prepared.text.train
    rows = tokens.rows_with_labels() if proxy.reference_rows == "all" else _proxy_rows(prepared)
    if proxy.reference_losses is not None:
        store = _given_losses(prepared, Path(proxy.reference_losses))
        if lacking := len(store.missing(tokens.ids_N16[rows])):
            raise ArtifactError(
                f"{store.folder} lacks {lacking:,} of the {len(rows):,} blocks that the proxy trains on: it was measured "
                "for another seed, length or sampling; have it measured with proxy.reference_rows=all"
            )
    else:
        model = proxy.reference_model or _trained_reference(prepared, weight_K, parents)
        store = _measured_losses(prepared, model, rows)
    parents.append(_parent(prepared.root, store.folder))
    return TokenLosses(store, tokens.ids_N16, tokens.num_labels_N, prepared.cache, rows=rows)


def _proxy_rows(prepared: Prepared) -> np.ndarray:
    """The rows that the proxy will be trained on, ascending, (R,): its batches are known before it is."""
    training, names = prepared.config.proxy.training, prepared.domains.names
    mixture = Mixture.constant(names, prepared.method.sampling_weights(prepared.domains))
    sampler = inputs.mixture_sampler(prepared.text.train, mixture, training, seed=training.seed, where="proxy.training")
    return np.unique(sampler.rows_at(0, training.max_steps * training.global_batch_size))


def _trained_reference(prepared: Prepared, weight_K: np.ndarray, parents: list[dict[str, str]]) -> ModelSettings:
    spec = prepared.base | {"kind": "reference", "weights": weight_K.tolist()}
    folder = _train(prepared, "reference", spec, Mixture.constant(prepared.domains.names, weight_K))
    parents.append(_parent(prepared.root, folder))
    return replace(prepared.config.model, path=str(folder / "model"), random_weights=False, revision=None)


def _measured_losses(prepared: Prepared, model: ModelSettings, rows: np.ndarray) -> SignalStore:
    """The loss of every label token of these rows under `model`, stored; what is stored is not measured again."""
    from dataflex_tools.models.load import device, load_model, model_sha256
    from dataflex_tools.score.engine import measure
    from dataflex_tools.score.loss import TokenLossSignal, token_loss_columns

    settings, tokens, sha256 = prepared.config.token_loss, prepared.text.train, model_sha256(model)
    spec = {
        "kind": "token_loss", "model": sha256, "dtype": model.dtype, "render": tokens.render_digest,
        "settings": settings.address(),
    }  # fmt: skip
    columns, digests = token_loss_columns(settings.storage), digests_in(prepared.cache)
    store = SignalStore(signal_folder(prepared.root, spec), spec, columns, digests)
    title = "token losses of the reference"
    with hold_for_all(store.folder, title):
        if dist.is_main():
            store.check()
        if len(store.missing(tokens.ids_N16[rows])) == 0 and store.is_finished:
            if dist.is_main():
                logger.info("reused: %s (%s)", title, store.folder.name)
            return store
        signal = TokenLossSignal(load_model(model).to(device()), settings)
        measure(signal, tokens, store, title=title, rows=rows)
        if dist.is_main():
            tokenizer = {"sha256": prepared.tokenizer.sha256, "render": tokens.render_digest}
            info = {"name": model.path, "sha256": sha256, "dtype": model.dtype}
            store.finish({"model": info, "tokenizer": tokenizer, "parents": []})
        dist.barrier()
    return store


def _given_losses(prepared: Prepared, folder: Path) -> SignalStore:
    """Token losses that somebody measured. Raises ArtifactError if they are of another tokenizer or packing."""
    from dataflex_tools.score.loss import token_loss_columns

    manifest, tokens = read_manifest(folder), prepared.text.train
    if manifest.get("signal") != "token_loss":
        raise ArtifactError(f"{folder} is no token_loss signal; give one that `flextools score --method doremi` wrote")
    if (found := str(manifest["spec"].get("render"))) != tokens.render_digest:
        theirs, ours = str((manifest.get("tokenizer") or {}).get("sha256")), prepared.tokenizer.sha256
        what = f"tokenizer {theirs[:16]}" if theirs != ours else f"packing {found[:16]}"
        own = f"tokenizer {ours[:16]}" if theirs != ours else f"packing {tokens.render_digest[:16]}"
        raise ArtifactError(
            f"{folder} was measured with {what}, the data is read with {own} ({prepared.config.model.path}, "
            f"{_pack_text(prepared)}); use the same tokenizer and pack settings, or measure a reference anew"
        )
    settings = manifest["spec"].get("settings")
    storage = settings.get("storage") if isinstance(settings, Mapping) else None
    if storage not in ("float16", "float32"):
        raise ArtifactError(f"{folder} does not say how its losses are stored (spec.settings.storage); do not use it")
    return SignalStore(folder, manifest["spec"], token_loss_columns(storage), digests_in(prepared.cache))


def _pack_text(prepared: Prepared) -> str:
    pack = prepared.config.pack
    return f"pack.block_size {pack.block_size}" if pack is not None else f"cutoff_len {prepared.config.render.cutoff_len}"


def train_proxy(prepared: Prepared, method: OnlineMixer, reference: Any, parents: list[dict[str, str]]) -> Any:
    """Train the proxy; the states its mixer went through."""
    from dataflex_tools.train.mixing import Loop

    text = prepared.text
    measure = None if method.observes in ("loss", "excess_loss") else partial(_measure_held_out, prepared, method)
    loop = Loop(method, prepared.domains, text.train.group_N, text.train.num_labels_N, reference, measure)
    settings = {key: value for key, value in to_mapping(method.settings).items() if key not in method.after_training}
    spec = prepared.base | {
        "kind": "proxy", "method": prepared.config.method, "settings": settings,
        "held_out": [text.held_out_digest, prepared.config.proxy.held_out_rows] if measure else None,
        "reference": reference.spec_digest if reference is not None else None,
    }  # fmt: skip
    weight_K = method.sampling_weights(prepared.domains) if method.weighs_loss else method.start(prepared.domains).weight_K
    folder = _train(
        prepared, f"{prepared.config.method} proxy", spec, Mixture.constant(prepared.domains.names, weight_K), loop
    )
    parents.append(_parent(prepared.root, folder))
    check_file(folder, read_manifest(folder), _STATES)
    return _read_states(folder / _STATES)


def _measure_held_out(prepared: Prepared, method: OnlineMixer, model: Any, is_sharded: bool) -> Observation:
    """What a mixer is told of the held-out rows, of all ranks."""
    from dataflex_tools.score.held_out import held_out_loads, held_out_losses

    measure = held_out_loads if method.observes == "router_load" else held_out_losses
    return measure(model, prepared.text.held_out, num_rows=prepared.config.proxy.held_out_rows, is_sharded=is_sharded)


def train_swarm(prepared: Prepared, method: SwarmMixer, parents: list[dict[str, str]]) -> Mixture:
    """Train a small model on each mixture of the swarm, one after the other, and fit."""
    config, domains = prepared.config, prepared.domains
    weight_SK = method.mixtures(domains, rng=generator(config.seed, config.method, "mixtures"))
    spec = prepared.base | {"kind": "swarm", "held_out": [prepared.text.held_out_digest, config.proxy.held_out_rows]}
    folder = prepared.root / "models" / f"swarm-{digest(spec)[:16]}"
    with hold_for_all(folder, "swarm"):
        loss_SK = _swarm_losses_in(folder, prepared, weight_SK, spec)
    parents.append(_parent(prepared.root, folder))
    mixture = method.fit(domains, weight_SK, loss_SK, rng=generator(config.seed, config.method, "fit"))
    columns = {f"weight_{name}": weight_SK[:, k] for k, name in enumerate(domains.names)}
    columns |= {f"loss_{name}": loss_SK[:, k] for k, name in enumerate(domains.names)}
    return replace(mixture, tables={**mixture.tables, "swarm": columns})


def _swarm_losses_in(folder: Path, prepared: Prepared, weight_SK: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Held-out losses of each training of the swarm, (S, K); those that are not there are trained now."""
    known = _swarm_entries(folder, spec)
    loss_SK = np.stack(
        [
            _swarm_run(prepared, folder, weight_K, f"{i + 1} of {len(weight_SK)}", known)
            for i, weight_K in enumerate(weight_SK)
        ]
    )
    if dist.is_main():
        names = sorted(path.name for path in folder.glob("*.json") if path.name != MANIFEST)
        if names != sorted(known):
            info = {"model": prepared.model_info, "spec": spec, "parents": [], "stats": {"trainings": len(names)}}
            files = [known.get(name) or file_entry(folder, name) for name in names]
            write_manifest(folder, {"kind": "model", **info, "files": files})
    dist.barrier()
    return loss_SK


def _swarm_entries(folder: Path, spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the swarm's manifest says of each training's file, by name, once they are seen to be as they were written."""
    if not (folder / MANIFEST).exists():
        return {}
    manifest = read_manifest(folder)
    if digest(manifest.get("spec")) != digest(spec):
        raise ArtifactError(f"{folder} is not the swarm of that address; delete it and run `flextools score` again")
    known = {entry["path"]: entry for entry in manifest["files"] if (folder / entry["path"]).exists()}
    for name in known:  # one that was deleted is trained again
        check_file(folder, manifest, name)
    return known


def _swarm_losses(path: Path, weight_K: np.ndarray, is_listed: bool) -> np.ndarray:
    """The losses a training left. Raises ArtifactError if they are not as they were written, or of other weights."""
    found = read_json(path)
    body = {key: found.get(key) for key in ("weights", "losses")} if isinstance(found, dict) else {}
    is_right = is_listed or (body and found.get("digest") == digest(body))
    losses = body.get("losses") if is_right and body.get("weights") == weight_K.tolist() else None
    if not isinstance(losses, list) or [type(loss) for loss in losses] != [float] * len(weight_K):
        raise ArtifactError(f"{path} was changed after it was written; delete it and run `flextools score` again")
    return np.array(losses, dtype=np.float64)


def _swarm_run(prepared: Prepared, folder: Path, weight_K: np.ndarray, where: str, known: Mapping[str, Any]) -> np.ndarray:
    """Held-out loss of each domain after a training on these weights, nats per token; kept, the model is not."""
    from dataflex_tools.models.load import device, load_model
    from dataflex_tools.score.held_out import held_out_losses

    path = folder / f"{digest(weight_K.tolist())[:16]}.json"
    work = path.with_suffix("")
    if path.exists():
        if dist.is_main():
            shutil.rmtree(work, ignore_errors=True)  # of a start that was killed once the losses were written
    else:
        if dist.is_main():
            logger.info("swarm: training %s", where)
        _fit(prepared, work, Mixture.constant(prepared.domains.names, weight_K), {"swarm": weight_K.tolist()})
        settings = replace(prepared.config.model, path=str(work / "model"), random_weights=False, revision=None)
        count = prepared.config.proxy.held_out_rows
        seen = held_out_losses(load_model(settings).to(device()), prepared.text.held_out, num_rows=count)
        if not np.isfinite(seen.mean_K).all():
            raise DataError(f"the held-out loss after training {where} is not finite; lower proxy.training.learning_rate")
        dist.barrier()
        if dist.is_main():
            result = {"weights": weight_K.tolist(), "losses": seen.mean_K.tolist()}
            remove_leftovers(folder)
            write_json(path, {**result, "digest": digest(result)})
            shutil.rmtree(work)
        dist.barrier()
    return _swarm_losses(path, weight_K, path.name in known)


def _train(prepared: Prepared, title: str, spec: Mapping[str, Any], mixture: Mixture, loop: Any = None) -> Path:
    """The folder of a trained small model, an artifact of kind `model`; found, or trained now."""
    folder = prepared.root / "models" / f"{spec['kind']}-{digest(spec)[:16]}"
    with hold_for_all(folder, title):
        _train_in(folder, prepared, title, spec, mixture, loop)
    return folder


def _train_in(folder: Path, prepared: Prepared, title: str, spec: Mapping[str, Any], mixture: Mixture, loop: Any) -> None:
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if digest(manifest.get("spec")) != digest(spec):
            raise ArtifactError(f"{folder} is not the {title} of that address; delete it and run `flextools score` again")
        check_files(folder, manifest, digests_in(prepared.cache))
        if dist.is_main():
            logger.info("reused: %s (%s)", title, folder.name)
            _remove_work(folder)
        return
    if dist.is_main():
        logger.info("training the %s: %s", title, weights_text(mixture))
    dist.barrier()
    run = _fit(prepared, folder, mixture, {"spec": digest(spec)}, loop)
    if dist.is_main():
        _write_states(folder / _STATES, run.trajectory)
        paths = [p for p in (folder / "model").rglob("*") if p.is_file()]
        paths += [run.ledger, run.log, folder / _STATES, folder / "run.json"]
        files = [file_entry(folder, name) for name in sorted(str(path.relative_to(folder)) for path in paths)]
        info = {"model": prepared.model_info, "spec": spec, "parents": [], "stats": {"steps": run.num_steps}}
        write_manifest(folder, {"kind": "model", **info, "files": files})
        _remove_work(folder)  # after the manifest: what a resume needs goes only when none can come
    dist.barrier()


def _remove_work(folder: Path) -> None:
    for name in ("journal", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)
    remove_leftovers(folder)


def _fit(prepared: Prepared, folder: Path, mixture: Mixture, made_from: Mapping[str, Any], loop: Any = None) -> Any:
    """Train all weights of the small model on a mixture in `folder`, from its last checkpoint if it was begun."""
    from dataflex_tools.models.load import load_model
    from dataflex_tools.train.run import FitOptions, run_training

    training, tokens = prepared.config.proxy.training, prepared.text.train
    sampler = inputs.mixture_sampler(tokens, mixture, training, seed=training.seed, where="proxy.training")
    options = FitOptions(tokenizer=prepared.tokenizer.value, made_from=made_from, loop=loop, where="proxy.training")
    return run_training(partial(load_model, prepared.config.model), tokens, sampler, training, folder, options=options)


def _write_states(path: Path, states: tuple[MixState, ...]) -> None:
    """As JSON, whose numbers come back to the last bit; a score that a domain does not have yet is null."""
    body = [
        {
            "step": state.step,
            "weight": state.weight_K.tolist(),
            "score": [None if np.isnan(score) else score for score in state.score_K.tolist()],
        }
        for state in states
    ]
    write_json(path, body)


def _read_states(path: Path) -> tuple[MixState, ...]:
    body = json.loads(path.read_text(encoding="utf-8"))
    score = [[np.nan if x is None else x for x in item["score"]] for item in body]
    states = zip(body, score, strict=True)
    return tuple(MixState(item["step"], np.array(item["weight"]), np.array(score_K)) for item, score_K in states)


def _parent(root: Path, folder: Path) -> dict[str, str]:
    path = folder.relative_to(root) if folder.is_relative_to(root) else folder
    return {"path": str(path), "digest": read_manifest(folder)["digest"]}


def weights_text(mixture: Mixture) -> str:
    """The first weights, by domain, for log lines."""
    weights = zip(mixture.names, mixture.weight_SK[0], strict=True)
    return ", ".join(f"{name} {weight:.3f}" for name, weight in weights)
