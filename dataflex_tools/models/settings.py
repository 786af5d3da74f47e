"""Which model, which adapter: settings that cost no heavy import."""

from dataclasses import dataclass, field

from dataflex_tools.core.config import require

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """A LoRA adapter. `target_modules`: last name parts, a regex, or "all-linear".

    The defaults are those of LESS but for dropout (0.1 there): without it a result does not depend on the number of ranks.
    """

    r: int = 128
    alpha: float = 512.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | str = ("q_proj", "k_proj", "v_proj", "o_proj")
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        require(self.r > 0, f"lora.r is {self.r}, wanted a positive number")
        require(self.alpha > 0, f"lora.alpha is {self.alpha}, wanted a positive number")
        require(0 <= self.dropout < 1, f"lora.dropout is {self.dropout}, wanted a value in [0, 1)")
        require(len(self.target_modules) > 0, "lora.target_modules is empty; name modules or write all-linear")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A causal language model: a folder or a hub name, and how to load it.

    `random_weights` takes a folder that holds a configuration only and draws the weights from `seed`.
    """

    path: str
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    random_weights: bool = False
    seed: int = 0
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        require(bool(self.path), "model.path is empty; give a folder or a hub name")
        require(self.dtype in DTYPES, f"model.dtype is {self.dtype!r}, wanted one of {', '.join(DTYPES)}")
