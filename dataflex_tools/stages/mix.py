"""The score stage of a mixer: look at the domains, train the small models it asks for, write the mixture.

Everything on the way is an artifact of its own and found again: trained references, proxies and swarms under `models/`, the
reference's token losses under `signals/`. A killed stage goes on where it stood.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.manifest import MANIFEST, check_files, read_manifest, read_unchecked
from dataflex_tools.artifact.mixture import write_mixture
from dataflex_tools.artifact.plan import check_out
from dataflex_tools.core import dist
from dataflex_tools.core.cache import cache_folder
from dataflex_tools.core.config import differences, to_mapping
from dataflex_tools.core.errors import ArtifactError, ConfigError
from dataflex_tools.core.lock import hold_for_all
from dataflex_tools.core.mixing import Domains, Mixture
from dataflex_tools.core.rng import generator
from dataflex_tools.data.packed import Blocks
from dataflex_tools.data.sources import check_exists
from dataflex_tools.methods.base import OnlineMixer, StaticMixer, SwarmMixer
from dataflex_tools.models.settings import ModelSettings
from dataflex_tools.score.held_out import deciding_rows
from dataflex_tools.stages import inputs
from dataflex_tools.stages.config import ScoreConfig, build_method, is_by_held_out, recorded, without_code
from dataflex_tools.stages.proxies import (
    Prepared,
    reference_losses,
    train_proxy,
    train_swarm,
    weights_text,
)
from dataflex_tools.train.settings import fitted, num_steps

logger = logging.getLogger("flextools")

# K domains


def prepare(config: ScoreConfig, cache: Path, *, overwrite: bool = False) -> Prepared:
    """Read and pack the text, check everything that can be checked without a model's weights."""
    from dataflex_tools.models.load import model_sha256

    method = build_method(config)
    check_out(Path(config.out), overwrite=overwrite)
    check_settings(config, method)
    sha256 = None if isinstance(method, StaticMixer) else model_sha256(config.model)  # it reads the tokenizer alone
    model_info = {"name": config.model.path, "sha256": sha256, "dtype": config.model.dtype}
    tokenizer = inputs.Tokenizer.of(config.model)
    text = inputs.read_text(config.data, tokenizer, config.render, config.pack, cache)
    if not isinstance(method, StaticMixer):
        inputs.check_fits(text.side, tokenizer, config.model)
    tokens = text.train
    num_rows_K = np.bincount(tokens.group_N, minlength=len(tokens.group_names))
    num_tokens_K = np.bincount(tokens.group_N, weights=tokens.num_tokens_N, minlength=len(num_rows_K)).astype(np.int64)
    domains = Domains(tuple(tokens.group_names), num_rows_K, num_tokens_K, vocab_size=len(tokenizer.value))
    if len(domains) == 1:
        raise ConfigError(
            f"the data has one domain, {domains.names[0]!r}, so there is nothing to mix: give a source for each, as "
            "--data NAME=SOURCE, or the column that tells them apart (domain_column)"
        )
    if not isinstance(method, StaticMixer):
        num_steps(config.proxy.training, len(tokens), where="proxy.training")
        config = replace(config, proxy=replace(config.proxy, training=fitted(config.proxy.training, len(tokens))))
    if isinstance(method, OnlineMixer):
        method.start(domains)  # settings that do not fit the domains
    if config.proxy.reference_model is not None:
        _check_reference(config.proxy.reference_model, tokenizer, text, config)
    if is_by_held_out(type(method)):
        deciding_rows(text.held_out, config.proxy.held_out_rows)
    return Prepared(config, method, text, tokenizer, domains, model_info, cache)


def _check_reference(reference: ModelSettings, tokenizer: inputs.Tokenizer, text: inputs.Text, config: ScoreConfig) -> None:
    """Raise ConfigError unless the reference reads the same tokens."""
    inputs.check_pack(config.pack, reference)
    theirs = inputs.Tokenizer.of(reference)
    if theirs.sha256 != tokenizer.sha256:
        raise ConfigError(
            f"proxy.reference_model {reference.path} has tokenizer {theirs.sha256[:16]}, {config.model.path} has "
            f"{tokenizer.sha256[:16]}: losses of other tokens do not compare; give models with the same tokenizer"
        )
    inputs.check_fits(text.side, theirs, reference)


def check_settings(config: ScoreConfig, method: Any) -> None:
    """Raise for what can be seen to be wrong before any data is read."""
    from dataflex_tools.models.load import check_model, model_sha256
    from dataflex_tools.score.router_load import check_router
    from dataflex_tools.train.settings import check_training

    inputs.check_pack(config.pack, config.model)
    for source in config.data:
        check_exists(source)
    if isinstance(method, StaticMixer):
        return
    _check_loop(config, method)
    check_training(config.proxy.training, world_size=dist.world_size(), where="proxy.training")
    if config.proxy.training.max_steps <= 0:
        raise ConfigError("proxy.training.max_steps is not set; say how many steps the small models are trained for")
    steps, first = config.proxy.training.max_steps, method.first_update if isinstance(method, OnlineMixer) else 1
    if first > steps:
        after = f"settings.warmup_steps is {first - method.update_every} and " if first > method.update_every else ""
        raise ConfigError(
            f"{after}settings.update_every is {method.update_every} and proxy.training.max_steps {steps}: {config.method} "
            "would never decide; train longer, or update earlier"
        )
    check_model(replace(config.model, lora=replace(config.model.lora, target_modules="all-linear")))
    if isinstance(method, OnlineMixer) and method.observes == "router_load":
        check_router(config.model)
    if config.proxy.reference_model is not None:
        model_sha256(config.proxy.reference_model)


def _check_loop(config: ScoreConfig, method: Any) -> None:
    """Raise ConfigError for settings that have no effect where a mixer is in the loop."""
    extra = config.proxy.training.extra
    if "label_smoothing_factor" in extra:
        raise ConfigError("proxy.training.extra.label_smoothing_factor has no effect on a mixer's losses; leave it out")
    draws = isinstance(method, OnlineMixer) and not method.weighs_loss
    for name in sorted(extra) if draws else ():
        if name.startswith("dataloader_"):
            raise ConfigError(
                f"proxy.training.extra.{name} has no effect with {config.method!r}, which draws each batch when it is due; "
                "leave it out"
            )


def score_mixture(config: ScoreConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Run the stage; returns the mixture's manifest. One that exists with the same address is returned as it is.

    Waits while another process works on `out`. Raises ArtifactError if it holds something else, unless `overwrite`.
    """
    prepared = prepare(config, cache_folder(Path(config.out).parent), overwrite=overwrite)
    with hold_for_all(Path(config.out), f"score {config.method}"):
        return _score(prepared, overwrite=overwrite)


def _score(prepared: Prepared, *, overwrite: bool) -> dict[str, Any]:
    config = prepared.config
    is_there = is_done(prepared, overwrite=overwrite)
    dist.barrier()  # no rank writes before all have looked
    if is_there:
        if dist.is_main():
            logger.info("reused: %s has this mixture already", config.out)
        return read_manifest(Path(config.out))
    method = prepared.method
    parents: list[dict[str, str]] = []
    if (found := static_mixture(prepared)) is not None:
        mixture = found
    elif isinstance(method, SwarmMixer):
        mixture = train_swarm(prepared, method, parents)
    else:
        mixture = _online(prepared, method, parents)
    if dist.is_main():
        _write(prepared, mixture, parents, overwrite=overwrite)
    dist.barrier()
    return read_manifest(Path(config.out))


def static_mixture(prepared: Prepared) -> Mixture | None:
    """What a mixer decides that trains no model; None of the others."""
    method, config = prepared.method, prepared.config
    if not isinstance(method, StaticMixer):
        return None
    return method.mix(prepared.domains, rng=generator(config.seed, config.method))


def is_done(prepared: Prepared, *, overwrite: bool) -> bool:
    """Whether `out` holds exactly this mixture. Raises ArtifactError if it holds something else, unless `overwrite`."""
    config, settings = prepared.config, prepared.method.settings
    return has_plan(config.out, prepared.address, without_code(recorded(config)), settings, overwrite=overwrite)


def has_plan(out: str, address: str, config: dict[str, Any], settings: Any, *, overwrite: bool) -> bool:
    """Whether `out` holds the plan of this address; `config` and `settings`, defaults filled in, tell what differs.

    Raises ArtifactError if it holds another one, unless `overwrite`.
    """
    if not (Path(out) / MANIFEST).exists():
        return False
    found = read_unchecked(Path(out))
    is_same = found.get("address") == address
    try:
        found = read_manifest(Path(out))
        if is_same:
            check_files(Path(out), found)
    except ArtifactError:
        if overwrite:
            return False
        raise
    if is_same or overwrite:
        return is_same
    before = {**found.get("config", {}), "settings": found.get("settings", {})}
    now = {**config, "settings": to_mapping(settings)}
    names = ", ".join(differences(before, now)) or "the content of data or model"
    raise ArtifactError(
        f"{out} holds another plan ({found.get('method')}; differing: {names}); choose another --out, or give --overwrite"
    )


def trainings(prepared: Prepared) -> list[tuple[str, int, float]]:
    """(title, how often, flops per parameter and token) of the work ahead, at most; for estimates."""
    method, proxy = prepared.method, prepared.config.proxy
    if isinstance(method, StaticMixer):
        return []
    if isinstance(method, SwarmMixer):
        num = len(method.mixtures(prepared.domains, rng=generator(prepared.config.seed, prepared.config.method, "mixtures")))
        return [("swarm", num, 6.0)]
    if method.observes != "excess_loss":
        return [("proxy", 1, 6.0)]
    rounds = method.max_rounds
    own = [] if proxy.reference_model or proxy.reference_losses else [("reference", rounds, 6.0)]
    losses = [] if proxy.reference_losses else [("token losses of the reference", rounds, 2.0)]
    return [*own, *losses, ("proxy", rounds, 6.0)]


def _online(prepared: Prepared, method: OnlineMixer, parents: list[dict[str, str]]) -> Mixture:
    """Train a proxy with the mixer in the loop; DoReMi's rounds until the weights settle."""
    if method.observes != "excess_loss":
        states = train_proxy(prepared, method, None, parents)
        return method.finish(prepared.domains, states)
    weight_K = method.reference_weights(prepared.domains)
    for number in range(1, method.max_rounds + 1):
        reference = reference_losses(prepared, weight_K, parents)
        mixture = method.finish(prepared.domains, train_proxy(prepared, method, reference, parents))
        before_K, weight_K = weight_K, mixture.weight_SK[-1]
        if dist.is_main():
            change = np.abs(weight_K - before_K).max()
            logger.info("round %d: largest change of a weight against the reference's %.4f", number, change)
        if method.is_settled(before_K, weight_K):
            break
    is_settled, facts = bool(method.is_settled(before_K, weight_K)), dict(mixture.facts)
    if not is_settled and method.max_rounds > 1:
        moved = f"a weight moved by {np.abs(weight_K - before_K).max():.3g} in the last of {number} rounds; raise max_rounds"
        facts["warnings"] = [*facts.get("warnings", []), moved]
    return replace(mixture, facts={**facts, "rounds": number, "is_settled": is_settled})


def _sizes(tokens: Any, domains: Domains) -> dict[str, dict[str, int]]:
    """What there is of each domain to train on: rows and tokens; documents, the samples themselves without `pack`, and
    tokens of these, which packed text has some more of than its blocks."""
    is_packed = isinstance(tokens, Blocks)
    counts = {
        "num_rows": domains.num_rows_K,
        "num_tokens": domains.num_tokens_K,
        "num_documents": tokens.num_documents_K if is_packed else domains.num_rows_K,
        "document_tokens": tokens.num_tokens_K + tokens.leftover_K if is_packed else domains.num_tokens_K,
    }
    return {key: dict(zip(domains.names, count_K.tolist(), strict=True)) for key, count_K in counts.items()}


def _write(prepared: Prepared, mixture: Mixture, parents: list[dict[str, str]], *, overwrite: bool) -> None:
    config, text = prepared.config, prepared.text
    is_static = isinstance(prepared.method, StaticMixer)
    facts = {
        "address": prepared.address,
        "method": config.method,
        "settings": to_mapping(prepared.method.settings),
        "corpus": text.side.info(),
        "model": None if is_static else prepared.model_info,
        "tokenizer": {**prepared.tokenizer.info(config.render), "render": text.train.render_digest},
        "parents": list({item["path"]: item for item in parents}.values()),
        "stats": _sizes(text.train, prepared.domains),
        "config": without_code(recorded(config)),
        "licence": config.licence,
    }
    manifest = write_mixture(Path(config.out), mixture, facts=facts, overwrite=overwrite)
    for warning in manifest["stats"]["warnings"]:
        logger.warning("%s: %s", config.method, warning)
    logger.info("wrote %s: %s, %s, %s", config.out, config.method, weights_text(
        Mixture.constant(mixture.names, mixture.weight_SK[-1])), manifest["digest"][:16])  # fmt: skip
