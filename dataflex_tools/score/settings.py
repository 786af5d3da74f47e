"""Settings of the scoring engine's signals; they cost no heavy import."""

from dataclasses import dataclass
from typing import Any, Literal

from dataflex_tools.core.config import require


@dataclass(frozen=True, kw_only=True)
class GradientSettings:
    """How gradients are measured. `adam` "none" is the plain gradient, as LESS takes for the target side.

    `token_budget`: padded tokens of a batch, None for 2,048 on a CPU and 16,384 on a GPU. `part_rows`: samples a file.
    """

    dim: int = 8192
    projection: Literal["sketch", "rademacher", "none"] = "sketch"
    seed: int = 0
    adam: Literal["optimizer_exact", "less_official", "dataflex", "none"] = "optimizer_exact"
    storage: Literal["float16", "float32"] = "float16"
    token_budget: int | None = None
    part_rows: int = 512

    def __post_init__(self) -> None:
        require(self.dim > 0, f"gradient.dim is {self.dim}, wanted a positive number")
        require(self.token_budget is None or self.token_budget > 0,
                f"gradient.token_budget is {self.token_budget}, wanted a positive number")  # fmt: skip
        require(self.part_rows > 0, f"gradient.part_rows is {self.part_rows}, wanted a positive number")

    def address(self) -> dict[str, Any]:
        """The settings the numbers depend on; batch and file sizes change nothing beyond rounding."""
        address: dict[str, Any] = {"projection": self.projection, "adam": self.adam, "storage": self.storage}
        return address if self.projection == "none" else address | {"dim": self.dim, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """How samples are embedded: by the scored model's hidden states, or by a sentence-transformers `model` (folder or Hub
    name), which embeds text and pools in its own way.

    `pooling` (None: mean) and `layer` (None: the last; 0 is the input embeddings) are of hidden states. `token_budget`:
    padded tokens of a batch, None for 2,048 on a CPU and 16,384 on a GPU. `part_rows`: samples a file.
    """

    model: str | None = None
    pooling: Literal["mean", "last", "weighted_mean"] | None = None
    layer: int | None = None
    storage: Literal["float16", "float32"] = "float16"
    token_budget: int | None = None
    part_rows: int = 4096

    def __post_init__(self) -> None:
        require(self.model != "", "embedding.model is empty; give a folder or a hub name, or leave it out")
        for name in ("pooling", "layer"):
            value = getattr(self, name)
            require(self.model is None or value is None,
                    f"embedding.{name} {value!r} has no effect with embedding.model {self.model}, which pools in its own "
                    "way; leave one of them out (a method may ask for a pooling)")  # fmt: skip
        require(self.token_budget is None or self.token_budget > 0,
                f"embedding.token_budget is {self.token_budget}, wanted a positive number")  # fmt: skip
        require(self.part_rows > 0, f"embedding.part_rows is {self.part_rows}, wanted a positive number")

    def address(self) -> dict[str, Any]:
        """The settings the numbers depend on; the weights of `model` are addressed by their hash, not by its name."""
        if self.model is not None:
            return {"encoder": "sentence-transformers", "storage": self.storage}
        layer = -1 if self.layer is None else self.layer
        return {"encoder": "hidden states", "pooling": self.pooling or "mean", "layer": layer, "storage": self.storage}


@dataclass(frozen=True, kw_only=True)
class LossSignalSettings:
    """How mean losses are measured: nothing to choose but sizes. `token_budget`: padded tokens of a batch, None for 2,048 on
    a CPU and 32,768 on a GPU. `part_rows`: samples a file.
    """

    token_budget: int | None = None
    part_rows: int = 1024

    def __post_init__(self) -> None:
        _require_sizes("loss", self.token_budget, self.part_rows)

    def address(self) -> dict[str, Any]:
        """The settings the numbers depend on: none."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TokenLossSignalSettings:
    """How the loss of every label token is measured and stored; `token_budget` and `part_rows` as for the mean loss."""

    storage: Literal["float16", "float32"] = "float16"
    token_budget: int | None = None
    part_rows: int = 1024

    def __post_init__(self) -> None:
        _require_sizes("token_loss", self.token_budget, self.part_rows)

    def address(self) -> dict[str, Any]:
        """The settings the numbers depend on."""
        return {"storage": self.storage}


@dataclass(frozen=True, kw_only=True)
class ZerothSignalSettings:
    """Along which random directions in weight space losses are differenced: `num_directions` of them, decided by `seed`,
    over the `trainable` parameters or over `all`, a step of `eps` to each side.

    `token_budget` as for losses; `part_rows`: samples a file.
    """

    num_directions: int = 16
    eps: float = 1e-3
    seed: int = 0
    parameters: Literal["trainable", "all"] = "trainable"
    storage: Literal["float16", "float32"] = "float16"
    token_budget: int | None = None
    part_rows: int = 512

    def __post_init__(self) -> None:
        require(self.num_directions > 0, f"zeroth.num_directions is {self.num_directions}, wanted a positive number")
        require(0 < self.eps < float("inf"), f"zeroth.eps is {self.eps}, wanted a positive number")
        _require_sizes("zeroth", self.token_budget, self.part_rows)

    def address(self) -> dict[str, Any]:
        """The settings the numbers depend on."""
        names = ("num_directions", "eps", "seed", "parameters", "storage")
        return {name: getattr(self, name) for name in names}


def _require_sizes(kind: str, token_budget: int | None, part_rows: int) -> None:
    require(token_budget is None or token_budget > 0, f"{kind}.token_budget is {token_budget}, wanted a positive number")
    require(part_rows > 0, f"{kind}.part_rows is {part_rows}, wanted a positive number")
