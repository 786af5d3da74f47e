"""What several tests share: the given vectors and tolerances, each with its reason."""

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "vectors"

# float64 arithmetic in another order
FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}


def vector(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
