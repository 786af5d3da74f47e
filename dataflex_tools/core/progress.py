"""One progress bar for long work: samples per second, tokens per second, time left; quiet on ranks other than 0."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

from dataflex_tools.core import dist
from dataflex_tools.core.printable import printable

logger = logging.getLogger("flextools")


_LINE_SECONDS = 30.0  # between two lines where there is no terminal


def time_text(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """A bar over `total` samples; leaves one log line with the measured speed when it ends.

    On a terminal the bar moves; elsewhere a line says every half minute how far it is.
    """

    def __init__(self, title: str, total: int, *, done: int = 0) -> None:
        self.title, self.num_samples, self.num_tokens = printable(title), 0, 0
        self._start = self._said = time.perf_counter()
        self._total = total - done
        quiet = not dist.is_main() or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=self.title, unit=" samples", disable=quiet, leave=False)

    def advance(self, num_samples: int, num_tokens: int = 0) -> None:
        """Count finished samples and their tokens."""
        self.num_samples += num_samples
        self.num_tokens += num_tokens
        if num_tokens:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{self.num_tokens / seconds:,.0f} tokens/s", refresh=False)
        self._bar.update(num_samples)
        if self._bar.disable and (now := time.perf_counter()) - self._said > _LINE_SECONDS:
            self._said = now
            self._say(now - self._start)

    def _say(self, seconds: float) -> None:
        """How far it is, for logs; rank 0 only, whose logger alone is on."""
        tokens = f", {self.num_tokens / seconds:,.0f} tokens/s" if self.num_tokens else ""
        logger.info(
            "%s: %s of %s, %.1f samples/s%s, %s left",
            self.title,
            f"{self.num_samples:,}",
            f"{self._total:,}",
            self.num_samples / seconds,
            tokens,
            time_text(seconds / self.num_samples * (self._total - self.num_samples)),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()
        if kind is None and self.num_samples:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            tokens = f", {self.num_tokens:,} tokens at {self.num_tokens / seconds:,.0f}/s" if self.num_tokens else ""
            logger.info(
                "%s: %s samples in %.1f s (%.1f/s)%s",
                self.title, f"{self.num_samples:,}", seconds, self.num_samples / seconds, tokens,
            )  # fmt: skip
