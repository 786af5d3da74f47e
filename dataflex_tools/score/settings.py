"""Settings of the scoring engine's signals; they cost no heavy import."""

import re
from dataclasses import asdict, dataclass, field
from string import Formatter
from typing import Any, Literal
from urllib.parse import urlsplit

from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError


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


_JUDGE_PROMPT = (
    "Rate the answer to the prompt from 0 (useless) to 10 (perfect).\n\nPrompt:\n{prompt}\n\nAnswer:\n{answer}\n\n"
    "Reply with the number alone."
)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How answers are drawn. Temperature 1 without `top_k` and `top_p` draws from the model itself; anything else is
    another policy than the one whose gradient is taken, and biases it.

    `max_new_tokens`: of an answer, its end included. `seed`: with the sample and the number of the answer it decides every
    draw.
    """

    num_answers: int = 20
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_answers", 2), ("max_new_tokens", 1)):
            value = getattr(self, name)
            require(value >= least, f"generation.{name} is {value}, wanted at least {least}")
        require(0 < self.temperature < float("inf"),
                f"generation.temperature is {self.temperature}, wanted a positive number")  # fmt: skip
        require(self.top_k is None or self.top_k > 0, f"generation.top_k is {self.top_k}, wanted a positive number")
        require(0 < self.top_p <= 1, f"generation.top_p is {self.top_p}, wanted a value in (0, 1]")

    @property
    def is_on_policy(self) -> bool:
        """Whether answers are drawn from the model's own distribution."""
        return self.temperature == 1 and self.top_k is None and self.top_p == 1

    def address(self) -> dict[str, Any]:
        """The settings the answers depend on: all."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RewardModelSettings:
    """A sequence-classification model with one output, the reward: a folder or a Hub name, and how to load it."""

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(bool(self.path), "reward.model.path is empty; give a folder or a hub name")

    def address(self) -> dict[str, Any]:
        """The content of its files, not where they are. Reads the files."""
        from dataflex_tools.score.rewards.model import content_sha256

        return {"sha256": content_sha256(self), "dtype": self.dtype}


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A judge behind an OpenAI-compatible chat endpoint, e.g. `base_url` http://127.0.0.1:8000/v1.

    `prompt` is what the judge reads, with {answer} and, as wanted, {prompt} and {reference} (write {{ for a brace);
    `pattern` finds the reward in its reply, as the one group; the default takes a reply that is a number and nothing else.
    `key_variable` names the environment variable that holds the key, None for a server without one. `timeout`: seconds to
    wait for a reply; `max_retries`: further tries, each after a longer pause, when the server is busy, broken or silent;
    `concurrency`: requests at a time. `temperature` None leaves it to the server.
    """

    base_url: str
    model: str
    prompt: str = _JUDGE_PROMPT
    pattern: str = r"^\s*(-?\d+(?:\.\d+)?)\s*$"
    temperature: float | None = 0.0
    key_variable: str | None = None
    timeout: float = 60.0
    max_retries: int = 5
    concurrency: int = 8

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        require(url.scheme in ("http", "https") and bool(url.hostname),
                f"reward.endpoint.base_url is {self.base_url!r}, wanted e.g. http://127.0.0.1:8000/v1")  # fmt: skip
        # settings are written into artifacts
        require("@" not in url.netloc and not url.query, "reward.endpoint.base_url holds a password or a query, which would "
                "be stored; put the key into an environment variable and name it in key_variable")  # fmt: skip
        require(bool(self.model), "reward.endpoint.model is empty; give the name the server knows the judge by")
        self._check_texts()
        require(self.timeout > 0, f"reward.endpoint.timeout is {self.timeout}, wanted a positive number of seconds")
        require(self.max_retries >= 0, f"reward.endpoint.max_retries is {self.max_retries}, wanted 0 or more")
        require(self.concurrency > 0, f"reward.endpoint.concurrency is {self.concurrency}, wanted a positive number")

    def _check_texts(self) -> None:
        try:
            fields = {name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None}
            groups = re.compile(self.pattern).groups
        except (ValueError, re.error) as error:
            raise ConfigError(f"reward.endpoint.prompt or pattern cannot be read: {error}") from None
        require("answer" in fields and fields <= {"prompt", "answer", "reference"},
                f"reward.endpoint.prompt has the fields {sorted(fields)}, wanted 'answer' and, if at all, 'prompt' and "
                "'reference'; write {{ and }} for braces")  # fmt: skip
        require(groups == 1, f"reward.endpoint.pattern has {groups} groups, wanted one that holds the number")

    def address(self) -> dict[str, Any]:
        """What decides the reply and how it is read; not the key, nor how often and how long it is asked."""
        names = ("base_url", "model", "prompt", "pattern", "temperature")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """What an answer is worth: its `kind`, and for three kinds where it comes from.

    `exact_match` is 1 where the answer is the reference but for white space around it, else 0. `rouge_l` is the F-measure
    of ROUGE-L with the reference. `function` is `package.module:function`, called as function(messages, answer, reference)
    for a number. `model` is a reward model, `endpoint` a judge behind HTTP.
    """

    kind: Literal["exact_match", "rouge_l", "function", "model", "endpoint"]
    function: str | None = None
    model: RewardModelSettings | None = None
    endpoint: EndpointSettings | None = None

    def __post_init__(self) -> None:
        for name in ("function", "model", "endpoint"):
            is_given = getattr(self, name) is not None
            require(is_given or self.kind != name, f"reward.kind is {name!r} and reward.{name} is missing; give it")
            require(not is_given or self.kind == name,
                    f"reward.{name} has no effect with reward.kind {self.kind!r}; leave one of them out")  # fmt: skip
        if self.function is not None:
            module, colon, name = self.function.partition(":")
            require(bool(module and colon and name.isidentifier()),
                    f"reward.function is {self.function!r}, wanted package.module:function")  # fmt: skip

    def address(self) -> dict[str, Any]:
        """What the rewards depend on: of a function its module's source, of a model its files."""
        if self.function is not None:
            from dataflex_tools.score.rewards.function import source_sha256

            return {"kind": self.kind, "function": self.function, "source": source_sha256(self.function)}
        source = self.model or self.endpoint
        return {"kind": self.kind} | ({self.kind: source.address()} if source else {})


@dataclass(frozen=True, kw_only=True)
class RewardGradientSettings:
    """The policy gradient of a reward: sum over answers of (reward - baseline) x gradient of minus the log-probability.

    `baseline` "mean" is the mean reward of the prompt's answers. `variant` "rejection" drops answers of reward 0 or less,
    "topk" keeps the `topk` best (None: 10). `part_rows`: prompts a file; what a killed run loses is their gradients alone,
    answers and rewards are kept as they come.
    """

    reward: RewardSettings
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    baseline: Literal["zero", "mean"] = "zero"
    variant: Literal["vanilla", "rejection", "topk"] = "vanilla"
    topk: int | None = None
    part_rows: int = 16

    def __post_init__(self) -> None:
        require(self.topk is None or self.variant == "topk",
                f"reward_gradient.topk has no effect with variant {self.variant!r}; leave one of them out")  # fmt: skip
        require(self.variant != "topk" or 0 < self.num_kept < self.generation.num_answers,
                f"reward_gradient.topk is {self.num_kept} of {self.generation.num_answers} answers, wanted fewer, and at "
                "least 1")  # fmt: skip
        require(self.part_rows > 0, f"reward_gradient.part_rows is {self.part_rows}, wanted a positive number")

    @property
    def num_kept(self) -> int:
        """Answers that variant "topk" keeps."""
        return 10 if self.topk is None else self.topk

    def address(self) -> dict[str, Any]:
        """The settings the numbers depend on beside those of the projection, which are `GradientSettings`'."""
        address: dict[str, Any] = {"reward": self.reward.address(), "generation": self.generation.address()}
        address |= {"baseline": self.baseline, "variant": self.variant}
        return address | ({"topk": self.num_kept} if self.variant == "topk" else {})
