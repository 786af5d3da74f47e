"""Rewards on disk: one line of JSON each, appended as it comes in, so that no answer is ever asked for twice."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataflex_tools.core import dist
from dataflex_tools.core.fingerprint import canonical_json, digest
from dataflex_tools.score.rewards.base import Reward, RewardRequest
from dataflex_tools.score.settings import RewardSettings

# N requests

logger = logging.getLogger("flextools")


class StoredRewards:
    """Rewards by the content of the request, in `cache`/rewards/<address of the reward's settings>/rank-<rank>.jsonl.

    All ranks' files are read, once; each rank appends to its own. A line carries a short digest of itself; one that does not
    fit, or that a kill left half-written, counts as not there.
    """

    def __init__(self, reward: Reward, settings: RewardSettings, cache: Path) -> None:
        self._reward = reward
        self.folder = cache / "rewards" / digest(settings.address())[:16]
        self._known: dict[str, float] = {}
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            self._read(path)

    def of(self, requests: Sequence[RewardRequest]) -> np.ndarray:
        """Reward of each request, (N,) float64; only what is not stored is asked for, equal requests once."""
        keys = [request.key for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        if missing:
            names = list(missing)
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"rank-{dist.rank()}.jsonl"
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                if (size := os.fstat(handle).st_size) and os.pread(handle, 1, size - 1) != b"\n":
                    os.write(handle, b"\n")
                for place, value in self._reward([*missing.values()]):
                    # one write a line: it outlives the process, and lines of two processes do not mix
                    entry = {"key": names[place], "reward": value, "check": _check_of(names[place], value)}
                    os.write(handle, (canonical_json(entry) + "\n").encode())
                    self._known[names[place]] = value
            finally:
                os.close(handle)
        return np.array([self._known[key] for key in keys], dtype=np.float64)

    def _read(self, path: Path) -> None:
        num_bad = 0
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    key, value = str(entry["key"]), float(entry["reward"])
                    # lines of earlier versions have none
                    if entry.get("check", own := _check_of(key, value)) != own:
                        raise ValueError("changed after it was written")
                    self._known[key] = value
                except (ValueError, KeyError, TypeError):
                    num_bad += bool(line.strip())
        if num_bad:
            logger.warning("%s: %d lines are not whole, or were changed; these rewards are asked for again", path, num_bad)


def _check_of(key: str, value: float) -> str:
    return digest([key, float(value)])[:16]
