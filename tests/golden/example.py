"""Builds `artifacts/example`: a small random-selection plan over twelve sentences. `python -m tests.golden.example`."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.plan import write_plan
from dataflex_tools.core.fingerprint import canonical_json, ids_digest
from dataflex_tools.core.plan import Selection

FOLDER = Path(__file__).parents[2] / "artifacts" / "example"
DOMAINS = ("arithmetic", "weather")
TEXTS = [f"What is {i} plus {i}? {2 * i}." for i in range(1, 8)] + [f"Day {i} was dry and {i + 10} C." for i in range(1, 6)]


def expected() -> dict[str, Any]:
    """Arguments of `write_plan`; a function of nothing but this file."""
    ids = b"".join(hashlib.sha256(canonical_json({"text": text}).encode()).digest()[:16] for text in TEXTS)
    ids_N16 = np.frombuffer(ids, dtype=np.uint8).reshape(-1, 16)
    sources = [{"path": "example.jsonl", "domain": None, "form": "text", "rows": len(TEXTS), "sha256": None}]
    score_N = np.array([0.5, 0.25, -0.125, 0.75, -np.inf, 0.0, 1.0, -0.5, 0.375, -0.25, 0.125, -1.0])
    return {
        "selection": Selection(score_N),
        "ids_N16": ids_N16,
        "domain_N": np.array([0] * 7 + [1] * 5),
        "domain_names": DOMAINS,
        "num_tokens_N": np.array([len(text.split()) for text in TEXTS]),
        "method": "random",
        "settings": {"seed": 0},
        "corpus": {
            "fingerprint": ids_digest(ids_N16),
            "rows": len(TEXTS),
            "domains": list(DOMAINS),
            "sources": sources,
        },
        "model": None,
        "tokenizer": None,
        "parents": [],
        "stats": {"excluded": 1},
        "config": {"method": {"name": "random", "seed": 0}},
        "licence": "cc0-1.0",
    }


if __name__ == "__main__":
    write_plan(FOLDER, **expected())
