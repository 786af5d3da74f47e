"""The command line in child processes that can be killed at any write, and comparison of what they leave behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import tiny

INSTRUMENT = Path(__file__).parent / "instrument"
SCRIPT = Path(sys.executable).with_name("flextools")


def call(root: Path, *words: str, watch: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`words` as a command in `root`, watched by instrument/sitecustomize.py if asked to."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if watch:
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(INSTRUMENT), env.get("PYTHONPATH")])), **watch}
    return subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, timeout=150, check=False)


def flextools(root: Path, *words: str, watch: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The installed command; the result's code is 0, or that of a SIGKILL where one was asked for."""
    done = call(root, str(SCRIPT), *words, watch=watch)
    assert done.returncode == (-9 if watch and "WATCH_KILL" in watch else 0), done.stderr[-3000:]
    return done


def make_project(root: Path) -> Path:
    """Inputs and stage configs with relative paths, so that all projects are called with the same words."""
    tiny.make_all(root)
    training = {"num_train_epochs": 2, "learning_rate": 1e-3, "global_batch_size": 8, "logging_steps": 1, "save_steps": 2}
    configs = {
        "score": tiny.score_config(Path()),
        "train": {"artifacts": ["artifacts/less"], "out": "runs/less", "budget": {"num_samples": 24}, "training": training},
    }
    for name, config in configs.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return root


def contents(root: Path, *folders: str) -> dict[str, Any]:
    """{path: bytes} of all files in `folders` but the cache; manifests without the time they were written."""
    found: dict[str, Any] = {}
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*")):
        name = str(path.relative_to(root))
        if name.startswith("artifacts/cache"):
            continue
        found[name] = path.read_bytes() if path.is_file() else None
        if path.name == "manifest.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "created"}
    return found


def assert_equal_contents(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The same files with the same bytes; names those that differ."""
    assert sorted(actual) == sorted(expected)
    assert [name for name in expected if actual[name] != expected[name]] == []
