"""Sentence-embedding models (sentence-transformers) from a folder or the Hub: their address, their size, loading them.

Only weights in safetensors and modules of the sentence-transformers library itself: nothing in the folder is run.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.fingerprint import digest, file_sha256
from dataflex_tools.models.load import device, local_folder
from dataflex_tools.models.settings import ModelSettings

_READ = (".json", ".safetensors", ".model", ".txt", ".jinja")  # what the library loads from
_OTHER_FORMATS = ("onnx", "openvino", "original", "coreml")


def check_sentence_model(name: str) -> Path:
    """The model's folder. Raises ConfigError if the library is not installed, or `name` holds no model it loads safely."""
    folder, _ = _modules(name)
    for other in sorted(folder.rglob("pytorch_model.bin")):
        if not (other.parent / "model.safetensors").is_file() and not list(other.parent.glob("model-*.safetensors")):
            raise ConfigError(f"{other} are weights in pickle; save the model with safetensors")
    if find_spec("sentence_transformers") is None:
        raise ConfigError(
            f"embedding.model {name} needs sentence-transformers, which is not installed; run "
            "`pip install 'flextools[embed]'`, or leave embedding.model out to embed with the scored model"
        )
    return folder


def load_sentence_model(name: str) -> Any:
    """The SentenceTransformer, in eval mode, on this rank's device. Raises as `check_sentence_model`."""
    folder = check_sentence_model(name)
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder), device=str(device()), local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"embedding.model {name} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    return model.eval()


def sentence_sha256(name: str) -> str:
    """SHA-256 (64 hex digits) of all files the model is loaded from, by their place in its folder."""
    folder, _ = _modules(name)
    places = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix in _READ and path.is_file()}
    chosen = {place.as_posix(): path for place, path in places.items() if place.parts[0] not in _OTHER_FORMATS}
    return digest({place: file_sha256(path) for place, path in sorted(chosen.items())})


def sentence_dim(name: str) -> int:
    """Columns of the model's embeddings, read from its module settings without loading a weight where they say it."""
    folder, modules = _modules(name)
    for module in reversed(modules):
        kind = module["type"].rpartition(".")[2]
        if kind in ("Dense", "Pooling"):
            config = json.loads((folder / module["path"] / "config.json").read_text(encoding="utf-8"))
            return int(config["out_features"]) if kind == "Dense" else _pooled_dim(config)
    return int(load_sentence_model(name).encode("x").shape[0])


def _pooled_dim(config: dict[str, Any]) -> int:
    """Each active mode gives one stretch of columns; version 6 of the library names modes, before they were booleans."""
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    modes = config.get("pooling_mode")
    if modes is None:
        count = sum(bool(value) for key, value in config.items() if key.startswith("pooling_mode_"))
    else:
        count = 1 if isinstance(modes, str) else len(modes)
    return int(width) * max(1, count)


def _modules(name: str) -> tuple[Path, list[dict[str, Any]]]:
    try:
        folder = local_folder(ModelSettings(path=name))
    except ConfigError as error:  # the same rules, under the name of this setting
        raise ConfigError(str(error).replace("model.path", "embedding.model")) from None
    if not (folder / "modules.json").is_file():
        raise ConfigError(
            f"embedding.model {name} has no modules.json: it is no sentence-transformers model; leave embedding.model "
            "out to embed with the hidden states of the scored model"
        )
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    # the library runs other classes from a local folder without asking
    if foreign := [module["type"] for module in modules if not module["type"].startswith("sentence_transformers.")]:
        raise ConfigError(f"embedding.model {name} brings code of its own ({foreign[0]}), which is not run; choose another")
    return folder, modules
