"""Small artifacts that the tests of this floor and of the report write."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.plan import PlanRows, write_plan
from dataflex_tools.artifact.signal import SignalStore, vector_columns
from dataflex_tools.core.fingerprint import ids_digest
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
