"""Tokenizers and models from a folder or the Hub, and the hashes that address what is made with them."""

import hashlib
import json
import logging
import os
import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from dataflex_tools.core.errors import ConfigError, near_path, one_line
from dataflex_tools.core.fingerprint import digest, file_sha256
from dataflex_tools.models.lora import add_lora, seeded
from dataflex_tools.models.settings import LoraSettings, ModelSettings

logger = logging.getLogger("flextools")

# everything a model or tokenizer is loaded from; other formats of the same weights are left where they are
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json",
                    "sentencepiece.bpe.model")  # fmt: skip
_ADAPTED = (torch.nn.Linear, Conv1D, torch.nn.Embedding)  # layers that an adapter can be put on
_POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
_SPARE_POSITIONS = 8  # OPT's table of positions has two more than the model has positions
_OTHER_FORMATS = ("original/*", "onnx/*", "openvino/*", "coreml/*")


def local_folder(settings: ModelSettings) -> Path:
    """The folder the model is in; a Hub name is downloaded to the Hub cache first (safetensors only).

    Raises ConfigError if it is neither a folder nor a name the Hub or its cache has.
    """
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        if settings.revision is not None:
            raise ConfigError(f"model.revision {settings.revision!r} has no effect: {folder} is a folder")
        return _no_adapter(folder, settings.path)
    hint = ("" if folder.exists() else near_path(folder)) or "give a model's folder or a hub name"
    if folder.exists() or settings.path.count("/") > 1 or settings.path.startswith((".", "/", "~")):
        raise ConfigError(f"model.path {settings.path} is not a folder; {hint}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(settings.path, revision=settings.revision, allow_patterns=list(_FILES),
                                       ignore_patterns=list(_OTHER_FORMATS)))  # fmt: skip
        return _no_adapter(found, settings.path)
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"model.path {settings.path} is no folder, not in the Hub cache, and the Hub cannot be reached; {hint}"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = f"is no folder and cannot be had from the Hub: {one_line(error)}"
        raise ConfigError(f"model.path {settings.path} {reason}; {hint}") from None


def _no_adapter(folder: Path, path: str) -> Path:
    """The folder. Raises ConfigError if it holds a LoRA adapter and no model."""
    adapter = folder / "adapter_config.json"
    if (folder / "config.json").is_file() or not adapter.is_file():
        return folder
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    of = f" for {base}" if base else ""
    merging = "merge the adapter into it (peft's merge_and_unload) and give the merged one"
    hint = f"give the model it belongs to, or {merging}"
    raise ConfigError(f"model.path {path} is a LoRA adapter{of}, no model; {hint}")


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerFast:
    """The model's fast tokenizer; without a pad token the end-of-text token pads.

    Raises ConfigError if there is none, it is slow, or nothing can pad.
    """
    folder = local_folder(settings)
    if (folder / "config.json").is_file():
        _config(settings)  # the tokenizer's loader reads it too, and would blame the tokenizer for a fault in it
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(f"{settings.path} has no tokenizer (tokenizer.json); save the model's tokenizer there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"the tokenizer of {settings.path} cannot be loaded: {one_line(error)}; save it again") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"the tokenizer of {settings.path} is {type(tokenizer).__name__}; a fast one is needed")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"the tokenizer of {settings.path} has neither a pad nor an end-of-text token; set "
                              "pad_token or eos_token in its tokenizer_config.json")  # fmt: skip
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("%s has no pad token: padding with %r, never trained on", settings.path, tokenizer.eos_token)
    return tokenizer


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (64 hex digits) of vocabulary, rules, special tokens and chat template; not of past calls' padding."""
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    body.pop("truncation", None)
    body.pop("padding", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest({"tokenizer": body, "special": special, "chat_template": tokenizer.chat_template})


def model_sha256(settings: ModelSettings) -> str:
    """SHA-256 (64 hex digits) of configuration, code and weight files, by name; for random weights of what makes them.

    Raises ConfigError if there are no weights in safetensors.
    """
    folder = local_folder(settings)
    files = [folder / "config.json", *sorted(folder.glob("*.py"))]
    extra: dict[str, Any] = {}
    if settings.random_weights:
        extra = {"random_weights": True, "seed": settings.seed}
    else:
        files += _weight_files(settings, folder)
    _config(settings)
    names = {path.name: file_sha256(path) for path in files}
    return hashlib.sha256(digest({"files": names, **extra}).encode()).hexdigest()


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """The model in eval mode, on the CPU. Raises ConfigError if it cannot be loaded."""
    folder = local_folder(settings)
    config = _config(settings)
    options: dict[str, Any] = {"dtype": settings.dtype, "trust_remote_code": settings.trust_remote_code}
    if settings.attn_implementation is not None:
        options["attn_implementation"] = settings.attn_implementation
    if settings.random_weights:
        if settings.dtype == "auto":
            options["dtype"] = config.dtype or torch.float32
        with seeded(settings.seed):
            model = AutoModelForCausalLM.from_config(config, **options)
    else:
        _weight_files(settings, folder)
        model = _from_weights(settings, folder, config, options)
    return cast(PreTrainedModel, model.eval())


def _from_weights(settings: ModelSettings, folder: Path, config: Any, options: dict[str, Any]) -> Any:
    """The model from its files. Raises ConfigError if a weight is missing or of another shape: it would be random."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigError(f"{settings.path} cannot be loaded: {one_line(error)}") from None
    absent = sorted(report["missing_keys"])
    misfits = sorted(str(item if isinstance(item, str) else item[0]) for item in report["mismatched_keys"])
    for names, fault in ((absent, "are not in its files"), (misfits, "have another shape in its files")):
        if names:
            raise ConfigError(
                f"{settings.path}: {len(names)} weights that config.json asks for {fault}, e.g. {names[0]}; get "
                "config.json and weights of the same model"
            )
    return model


def check_model(settings: ModelSettings) -> None:
    """Raise ConfigError, before any weight is read, if the model or a LoRA target does not exist."""
    folder = local_folder(settings)
    model = empty_model(settings)
    if not settings.random_weights:
        _weight_files(settings, folder)
    head = model.get_output_embeddings()
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _ADAPTED)]
    _check_targets(settings.lora, [name for name, module in layers if module is not head])


def empty_model(settings: ModelSettings) -> Any:
    """The model without weights, on the meta device: its layers by name and shape, in milliseconds.

    Raises ConfigError if it is no causal language model or `attn_implementation` cannot be had.
    """
    config = _config(settings)
    options = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code, **options)
    except (ValueError, ImportError) as error:
        if "Unrecognized configuration class" in str(error):
            found = f"{settings.path} is a {config.model_type} model"
            raise ConfigError(f"{found}; a causal language model is needed") from None
        what = f" with model.attn_implementation {settings.attn_implementation!r}" if options else ""
        raise ConfigError(f"{settings.path} cannot be used{what}: {one_line(error)}") from None


def _check_targets(lora: LoraSettings, names: list[str]) -> None:
    targets = lora.target_modules
    leaves = {name.rpartition(".")[2] for name in names}
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise ConfigError(f"lora.target_modules {targets!r} is no regular expression: {error}") from None
        if targets != "all-linear" and not any(pattern.fullmatch(name) for name in names):
            raise ConfigError(f"lora.target_modules {targets!r} matches no layer; {_layer_hint(targets, leaves)}")
        return
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ConfigError(f"lora.target_modules: no layer is called {target!r}; {_layer_hint(target, leaves)}")


def _layer_hint(name: str, leaves: set[str]) -> str:
    near = get_close_matches(name, leaves, n=1, cutoff=0.75)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}Set model.lora.target_modules to all-linear, or to some of {', '.join(sorted(leaves))}"


def _config(settings: ModelSettings) -> Any:
    folder = local_folder(settings)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{settings.path} has no config.json: it is not a model's folder; give one")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{settings.path} needs code that lies in its folder; read that code, and have it run with --set "
                "model.trust_remote_code=true (evaluate: trust_remote_code=true)"
            ) from None
        raise ConfigError(f"{settings.path}/config.json cannot be used: {one_line(error)}") from None


def _weight_files(settings: ModelSettings, folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if absent := sorted(name for name in shards if not (folder / name).is_file()):
            raise ConfigError(f"{settings.path} lacks {len(absent)} of {len(shards)} weight files, e.g. {absent[0]}")
        return [index, *(_readable(folder / name) for name in sorted(shards))]
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(
            f"{settings.path} has no model.safetensors; save the model with safetensors, or set model.random_weights"
        )
    return [_readable(folder / "model.safetensors")]


def _readable(path: Path) -> Path:
    """`path`, once its header has been read: a cut download or a pointer file is found before any work."""
    try:
        with safe_open(path, framework="np"):
            return path
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is no whole safetensors file ({one_line(error)}); fetch it again") from None


def num_parameters(settings: ModelSettings) -> int:
    """Parameters of the model, counted without reading a weight."""
    return sum(parameter.numel() for parameter in empty_model(settings).parameters())


def device() -> torch.device:
    """This rank's accelerator, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))


def max_positions(settings: ModelSettings) -> int | None:
    """Tokens the model has positions for, from its configuration; None where that says nothing."""
    config = _config(settings).get_text_config()
    found = next((getattr(config, name) for name in _POSITIONS if getattr(config, name, None)), None)
    return int(found) if found else None


def positions_end(settings: ModelSettings) -> bool:
    """Whether the model has a table of positions, which ends: computed ones only get worse beyond `max_positions`.

    A table is an embedding beside that of the words, or a buffer or plain tensor with so many rows (GPT-J's sines, GPT-2's
    mask, CTRL's encoding); MPT's `max_seq_len` is one.
    """
    most, model = max_positions(settings), empty_model(settings)
    if most is None:
        return False
    if not getattr(_config(settings).get_text_config(), _POSITIONS[0], None):
        return True
    words = (model.get_input_embeddings(), model.get_output_embeddings())
    tables: list[Any] = [buffer for _, buffer in model.named_buffers()]
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module not in words:
            tables.append(module.weight)
        own = {*map(id, module.parameters(recurse=False))}
        tables += [t for t in vars(module).values() if isinstance(t, torch.Tensor) and id(t) not in own]
    return any(0 <= size - most < _SPARE_POSITIONS for table in tables for size in table.shape)


@lru_cache
def has_fused_adapters(settings: ModelSettings) -> bool:
    """Whether the adapter that `settings` ask for lies on fused weights of experts and routers, not on layers alone."""
    config = add_lora(empty_model(settings), settings.lora, seed=0).peft_config["default"]
    return bool(config.target_parameters)


def hidden_size(settings: ModelSettings) -> int:
    """Width of the model's hidden states, from its configuration."""
    return int(_config(settings).get_text_config().hidden_size)
