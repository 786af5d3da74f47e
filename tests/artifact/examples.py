"""Small artifacts that the tests of this floor and of the report write."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.mixture import write_mixture
from dataflex_tools.artifact.plan import PlanRows, write_plan
from dataflex_tools.artifact.signal import SignalStore, vector_columns
from dataflex_tools.core.fingerprint import ids_digest
from dataflex_tools.core.mixing import MixState, Mixture
from dataflex_tools.core.plan import Selection

DIM = 16
SPEC = {"kind": "gradient", "settings": {"dim": DIM, "seed": 0}, "model": "ab" * 32}


def random_ids(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


def vectors_of(ids_N16: np.ndarray) -> np.ndarray:
    """A vector that is a function of the id alone, as a model's measurement is; (N, DIM), row lengths differ."""
    return ids_N16.astype(np.float64) - 100.0 + ids_N16[:, :1]


def store(folder: Path) -> SignalStore:
    return SignalStore(folder, SPEC, vector_columns(DIM, "float16"))


def write(signal: SignalStore, number: int, ids_B16: np.ndarray) -> None:
    raw_BD = vectors_of(ids_B16)
    norm_B = np.linalg.norm(raw_BD, axis=1)
    tokens_B = ids_B16[:, 0].astype(np.int32)
    signal.write_part(number, ids_B16, {"num_tokens": tokens_B, "norm": norm_B, "value": raw_BD / norm_B[:, None]})


def measure(folder: Path, ids_N16: np.ndarray, *, part_rows: int = 4) -> SignalStore:
    """Open, measure what is missing, finish: what the score stage does."""
    signal = store(folder)
    missing_M16 = ids_N16[signal.missing(ids_N16)]
    for number, chosen in signal.plan_parts(missing_M16, part_rows):
        write(signal, number, missing_M16[chosen])
    signal.finish({"model": {"name": "tiny", "sha256": "ab" * 32, "dtype": "float32"}})
    return signal


def plan_fields(count: int = 12) -> dict[str, Any]:
    """Selection, rows and facts of `write_plan`: `count` rows in three domains, one empty; row 3 is excluded."""
    ids_N16 = random_ids(count)
    score_N = np.linspace(-1, 1, count)
    score_N[3] = -np.inf
    return {
        "selection": Selection(score_N, {"score_maths": score_N / 2}),
        "ids_N16": ids_N16,
        "domain_N": np.arange(count) % 2 + 1,
        "domain_names": ("none", "web", "code"),
        "num_tokens_N": np.arange(1, count + 1),
        "method": "less",
        "settings": {"dim": DIM},
        "corpus": {
            "fingerprint": ids_digest(ids_N16),
            "rows": count,
            "domains": ["none", "web", "code"],
            "sources": [],
        },
        "model": {"name": "tiny", "sha256": "ab" * 32, "dtype": "float32"},
        "tokenizer": {"sha256": "cd" * 32, "template": "chatml"},
        "parents": [{"path": "../signals/gradient-00", "digest": "ef" * 32}],
        "stats": {"excluded": 1},
        "config": {"method": "less"},
    }


def plan(folder: Path, count: int = 12, **changed: Any) -> dict[str, Any]:
    fields = {**plan_fields(count), **changed}
    rows = PlanRows(**{field.name: fields.pop(field.name) for field in dataclasses.fields(PlanRows)})
    selection, overwrite = fields.pop("selection"), fields.pop("overwrite", False)
    return write_plan(folder, selection, rows=rows, facts=fields, overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def online_mixture(*, schedule: bool = False, updates: int = 6) -> Mixture:
    """What an online mixer leaves over web, code, maths: a trajectory, a table and facts; one score was never seen."""
    names = ("web", "code", "maths")
    weight_SK = np.random.default_rng(7).dirichlet(np.ones(3), updates + 1)
    score_SK = np.random.default_rng(8).normal(size=weight_SK.shape)
    score_SK[0, 1] = np.nan
    trajectory = tuple(MixState(10 * s, weight_SK[s], score_SK[s]) for s in range(updates + 1))
    more = {
        "trajectory": trajectory,
        "tables": {"averages": {"domain": np.array(names), "mean": weight_SK.mean(axis=0)}},
        "facts": {"num_updates": updates},
    }
    if schedule:
        return Mixture(names, 10 * np.arange(updates + 1), weight_SK, **more)
    return Mixture.constant(names, weight_SK.mean(axis=0), **more)


def mixture_facts() -> dict[str, Any]:
    """Facts of `write_mixture` for web, code and maths: 600, 200 and 100 tokens in 4, 6 and 2 documents."""
    sources = [
        {"path": f"data/{name}.jsonl", "domain": name, "form": "text", "rows": rows, "sha256": "ab" * 32}
        for name, rows in (("web", 4), ("code", 6), ("maths", 2))
    ]
    return {
        "method": "doremi",
        "settings": {"eta": 1.0},
        "corpus": {
            "fingerprint": "12" * 32,
            "rows": 12,
            "domains": {"web": 4, "code": 6, "maths": 2},
            "sources": sources,
            "tokens": 900,
        },
        "model": {"name": "tiny", "sha256": "ab" * 32, "dtype": "float32"},
        "tokenizer": {"sha256": "cd" * 32, "template": "plain"},
        "parents": [{"path": "../models/proxy-00", "digest": "ef" * 32}],
        "stats": {
            "num_tokens": {"web": 600, "code": 200, "maths": 100},
            "num_documents": {"web": 4, "code": 6, "maths": 2},
        },
        "config": {"method": "doremi"},
    }


def mix(folder: Path, mixture: Mixture | None = None, *, overwrite: bool = False, **changed: Any) -> dict[str, Any]:
    given = online_mixture() if mixture is None else mixture
    return write_mixture(folder, given, facts={**mixture_facts(), **changed}, overwrite=overwrite)
