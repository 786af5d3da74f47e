"""Tokenizers and models from a folder or the Hub, and the hashes that address what is made with them."""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.core.fingerprint import digest, file_sha256
from dataflex_tools.models.lora import seeded
from dataflex_tools.models.settings import LoraSettings, ModelSettings

logger = logging.getLogger("flextools")

# everything a model or tokenizer is loaded from; other formats of the same weights are left where they are
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
_OTHER_FORMATS = ("original/*", "onnx/*", "openvino/*", "coreml/*")


def local_folder(settings: ModelSettings) -> Path:
    """The folder the model is in; a Hub name is downloaded to the Hub cache first (safetensors only).

    Raises ConfigError if it is neither a folder nor a name the Hub or its cache has.
    """
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        if settings.revision is not None:
            raise ConfigError(f"model.revision {settings.revision!r} has no effect: {folder} is a folder")
        return folder
    if folder.exists() or settings.path.count("/") > 1 or settings.path.startswith((".", "/", "~")):
        raise ConfigError(f"model.path {settings.path} is not a folder; give a model's folder or a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(settings.path, revision=settings.revision, allow_patterns=list(_FILES),
                                      ignore_patterns=list(_OTHER_FORMATS)))  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.path {settings.path} is no folder and cannot be had from the Hub: {reason}") from None


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerFast:
    """The model's fast tokenizer; without a pad token the end-of-text token pads.

    Raises ConfigError if there is none, it is slow, or nothing can pad.
    """
    folder = local_folder(settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{settings.path} has no tokenizer that loads: {' '.join(str(error).split())}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"the tokenizer of {settings.path} is {type(tokenizer).__name__}; a fast one is needed")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"the tokenizer of {settings.path} has neither a pad nor an end-of-text token; set one")
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
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, use_safetensors=True, **options)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"{settings.path} cannot be loaded: {' '.join(str(error).split())}") from None
    return cast(PreTrainedModel, model.eval())


def check_model(settings: ModelSettings) -> None:
    """Raise ConfigError, before any weight is read, if the model or a LoRA target does not exist."""
    folder = local_folder(settings)
    config = _config(settings)
    if not settings.random_weights:
        _weight_files(settings, folder)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
    except ValueError:
        found = f"{settings.path} is a {config.model_type} model"
        raise ConfigError(f"{found}; a causal language model is needed") from None
    head = model.get_output_embeddings()
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    _check_targets(settings.lora, [name for name, module in linear if module is not head])


def _check_targets(lora: LoraSettings, names: list[str]) -> None:
    targets = lora.target_modules
    leaves = {name.rpartition(".")[2] for name in names}
    if isinstance(targets, str):
        if targets != "all-linear" and not any(re.fullmatch(targets, name) for name in names):
            raise ConfigError(f"lora.target_modules {targets!r} matches no layer; {did_you_mean(targets, leaves)}")
        return
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise ConfigError(f"lora.target_modules: no layer is called {target!r}; {did_you_mean(target, leaves)}")


def _config(settings: ModelSettings) -> Any:
    folder = local_folder(settings)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{settings.path} has no config.json: it is not a model's folder")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{settings.path}/config.json cannot be used: {' '.join(str(error).split())}") from None


def _weight_files(settings: ModelSettings, folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if absent := sorted(name for name in shards if not (folder / name).is_file()):
            raise ConfigError(f"{settings.path} lacks {len(absent)} of {len(shards)} weight files, e.g. {absent[0]}")
        return [index, *(folder / name for name in sorted(shards))]
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(
            f"{settings.path} has no model.safetensors; save the model with safetensors, or set model.random_weights"
        )
    return [folder / "model.safetensors"]


def num_parameters(settings: ModelSettings) -> int:
    """Parameters of the model, counted without reading a weight."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(settings), trust_remote_code=settings.trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())


def device() -> torch.device:
    """This rank's accelerator, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
