"""DataFlex's own LESS gradient features, installed beside us and run unmodified, for comparison."""

import importlib
import logging
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(".bench/dataflex")
PACKAGES = ("dataflex==1.1.0", "traker==0.3.2")


def load_selector() -> Any:
    """The `LessSelector` class of DataFlex 1.1.0; installs it into .bench/ if it is not there."""
    if not (HERE / "dataflex-1.1.0.dist-info").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(HERE), *PACKAGES]
        subprocess.run(command, check=True)
    sys.path.append(str(HERE.resolve()))  # last: nothing of ours is shadowed
    # the package's __init__ imports every selector with its optional libraries; only this one is wanted
    package = types.ModuleType("dataflex.train.selector")
    package.__path__ = [str(HERE.resolve() / "dataflex/train/selector")]
    sys.modules[package.__name__] = package
    logging.basicConfig(level=logging.WARNING)  # it asks for INFO at import
    module = importlib.import_module("dataflex.train.selector.less_selector")
    logging.getLogger("dataflex").setLevel(logging.WARNING)
    return module.LessSelector


def seconds_of_features(
    selector: Any,
    model: torch.nn.Module,
    samples: Sequence[dict[str, torch.Tensor]],
    state: Mapping[Any, Any],
    *,
    dim: int,
    folder: Path,
) -> float:
    """Seconds its `_collect_and_save_projected_gradients` takes; samples have input_ids and labels, (1, T) each."""
    from accelerate import Accelerator

    def collate(features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return features[0]  # it measures one sample at a time

    less = selector(samples, [], Accelerator(cpu=True), collate, str(folder), gradient_type="adam", proj_dim=dim)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    less._collect_and_save_projected_gradients(model, str(folder), samples, "adam", state)
    return time.perf_counter() - start
