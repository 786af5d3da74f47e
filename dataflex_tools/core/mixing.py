"""Mixtures: what a mixer decides, domain proportions over the steps of a training, and what it is told on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dataflex_tools.core.errors import ConfigError, DataError, did_you_mean

# K domains, S entries of a schedule, E experts

Observed = Literal["loss", "excess_loss", "held_out_loss", "router_load"]
Follow = Literal["schedule", "mean", "last"]
_SUM_TOLERANCE = 1e-6  # what rounding to six digits leaves
_NEAR_ONE_HOT = 0.95


@dataclass(frozen=True)
class Domains:
    """What is known of K domains without a model; `num_rows_K`, `num_tokens_K`: (K,) int64, none of them 0.

    `vocab_size`: entries of the tokenizer.
    """

    names: tuple[str, ...]
    num_rows_K: np.ndarray
    num_tokens_K: np.ndarray
    vocab_size: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def share_K(self) -> np.ndarray:
        """Each domain's share of all tokens: the natural proportions, (K,) float64."""
        return np.asarray(self.num_tokens_K / self.num_tokens_K.sum())


@dataclass(frozen=True)
class MixState:
    """All that an online mixer remembers: optimizer steps it has seen, weights (K,) and one score per domain (K,)."""

    step: int
    weight_K: np.ndarray
    score_K: np.ndarray


@dataclass(frozen=True)
class Observation:
    """What one update of an online mixer is told, summed over the global batch or the held-out rows of all ranks.

    `step`: optimizer steps including this one, from 1. `sum_K`: nats, `num_tokens_K`: label tokens, 0 for a domain that
    was not there. `load_KE`: tokens each expert got, for `router_load` only (`sum_K` is then unused).
    """

    step: int
    sum_K: np.ndarray
    num_tokens_K: np.ndarray
    load_KE: np.ndarray | None = None

    @property
    def mean_K(self) -> np.ndarray:
        """Nats per label token, (K,) float64; NaN for a domain without a token."""
        has_K = self.num_tokens_K > 0
        return np.asarray(np.divide(self.sum_K, self.num_tokens_K, out=np.full(len(has_K), np.nan), where=has_K))


@dataclass(frozen=True)
class Mixture:
    """Domain proportions of a training: row s of `weight_SK` holds from optimizer step `step_S[s]` (from 0) to the next.

    Rows are non-negative and sum to 1. `trajectory`: the states an online mixer went through, its start included. `tables`:
    further numbers by name, each a mapping of columns. `facts`: JSON values a reader should know of how it was decided.
    """

    names: tuple[str, ...]
    step_S: np.ndarray
    weight_SK: np.ndarray
    trajectory: tuple[MixState, ...] = ()
    tables: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weight_SK.shape != (len(self.step_S), len(self.names)) or not len(self.step_S):
            shape = self.weight_SK.shape
            raise ValueError(f"mixture: {shape} weights for {len(self.step_S)} steps of {len(self.names)} domains")
        if self.step_S[0] != 0 or (np.diff(self.step_S) <= 0).any():
            raise ValueError(f"mixture: steps {self.step_S[:4]}... do not ascend from 0")
        if not np.isfinite(self.weight_SK).all() or (self.weight_SK < 0).any():
            raise ConfigError("a mixture has a weight that is negative or not finite")
        if (off := np.abs(self.weight_SK.sum(axis=1) - 1).max()) > _SUM_TOLERANCE:
            raise ConfigError(f"a mixture's weights do not sum to 1: they are off by {off:.3g}")

    @classmethod
    def constant(cls, names: Sequence[str], weight_K: np.ndarray, **more: Any) -> "Mixture":
        """The same proportions at every step; `weight_K` is scaled to sum to 1."""
        weight_1K = np.asarray(weight_K, dtype=np.float64)[None] / np.sum(weight_K)
        return cls(tuple(names), np.zeros(1, dtype=np.int64), weight_1K, **more)

    @classmethod
    def of_trajectory(cls, names: Sequence[str], trajectory: tuple[MixState, ...], *, follow: Follow) -> "Mixture":
        """What an online mixer went through, to follow again.

        `schedule` replays it: weights decided after optimizer step t hold from step index t (from 0) on. `mean` is constant:
        the mean over the optimizer steps up to the last update; `last` is constant: what the last update decided.
        """
        step_S = np.array([state.step for state in trajectory], dtype=np.int64)
        weight_SK = np.stack([state.weight_K for state in trajectory])
        facts = {"num_updates": len(trajectory) - 1, **concentration(names, weight_SK[-1])}
        if follow == "schedule":
            return cls(tuple(names), step_S, weight_SK, trajectory, facts=facts)
        if follow == "mean" and len(trajectory) > 1:
            weight_K = np.average(weight_SK[:-1], axis=0, weights=np.diff(step_S))
            facts |= concentration(names, weight_K)
        else:
            weight_K = weight_SK[-1]
        return cls.constant(names, weight_K, trajectory=trajectory, facts=facts)

    @property
    def entropy(self) -> float:
        """Of the last proportions, nats; 0 when one domain has all, log K when all have the same."""
        weight_K = self.weight_SK[-1]
        positive = weight_K[weight_K > 0]
        return float(-(positive * np.log(positive)).sum())


def weights_of(given: Mapping[str, float], names: Sequence[str], *, where: str) -> np.ndarray:
    """Weights by domain name as (K,) float64 in the order of `names`, scaled to sum to 1; a domain not named gets 0.

    Raises ConfigError for an unknown name (with the nearest), a negative or non-finite weight, or weights that are all 0.
    """
    for name, value in given.items():
        if name not in names:
            raise ConfigError(f"{where} names {name!r}, which is no domain of the data; {did_you_mean(name, names)}")
        if not np.isfinite(value) or value < 0:
            raise ConfigError(f"{where}: the weight of {name!r} is {value}, wanted a number of 0 or more")
    weight_K = np.array([float(given.get(name, 0.0)) for name in names])
    if weight_K.sum() <= 0:
        raise ConfigError(f"{where}: no domain has a weight above 0")
    return np.asarray(weight_K / weight_K.sum())


def starting_weights(given: str | Mapping[str, float], domains: Domains, *, where: str) -> np.ndarray:
    """The (K,) float64 weights that a setting asks for: `natural` (by tokens), `uniform`, or by domain name.

    Raises ConfigError as `weights_of` and `check_starting_weights` do.
    """
    check_starting_weights(given, where=where)
    if isinstance(given, Mapping):
        return weights_of(given, domains.names, where=where)
    if given == "natural":
        return domains.share_K
    return np.full(len(domains), 1 / len(domains))


def check_starting_weights(given: str | Mapping[str, float], *, where: str) -> None:
    """Raise ConfigError for a word that is neither `natural` nor `uniform`; for settings, before the domains are known."""
    if isinstance(given, str) and given not in (words := ("natural", "uniform")):
        hint = did_you_mean(given, words)
        raise ConfigError(f"{where} is {given!r}, wanted 'natural', 'uniform' or a weight for each domain; {hint}")


def concentration(names: Sequence[str], weight_K: np.ndarray) -> dict[str, Any]:
    """Facts on how much one domain gets: entropy in nats, the largest weight, and a warning where little else is left."""
    largest = int(np.argmax(weight_K))
    name, weight = names[largest], float(weight_K[largest])
    facts = {"entropy": Mixture.constant(names, weight_K).entropy, "largest_domain": name, "largest_weight": weight}
    if weight > _NEAR_ONE_HOT and len(names) > 1:
        facts["warning"] = f"near one-hot: {name!r} has {weight:.1%} of the weight, the other {len(names) - 1} the rest"
    return facts


def finite_means(seen: Observation, names: Sequence[str], *, where: str) -> np.ndarray:
    """`seen.mean_K`, NaN only for domains without a token. Raises DataError, with the domain, if another is not finite."""
    mean_K = seen.mean_K
    for name, mean, count in zip(names, mean_K, seen.num_tokens_K, strict=True):
        if count > 0 and not np.isfinite(mean):
            raise DataError(
                f"{where}: the loss of domain {name!r} is {mean} over {int(count):,} tokens at step {seen.step}, wanted a "
                f"finite number; the model has diverged (lower the learning rate) or a stored reference loss is damaged"
            )
    return mean_K
