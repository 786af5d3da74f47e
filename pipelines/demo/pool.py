"""Build the demo's instruction pool, its target and its held-out items: `python pipelines/demo/pool.py --out DIR`.

Seven kinds of real text, one file a kind. The target stands for one kind, a known minority of the pool, so the share
of that kind in a selection says how well the selection found it. tool_calls is an easy target: it looks like nothing
else in the pool, and the longest 5 % of the items are already 82 % tool calls (measured), so compare with that; docs
is a harder one. Writes pool/<kind>.jsonl, target/<target kind>.jsonl, heldout/<kind>.jsonl and summary.json. The same
Python and the same arguments give the same files.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

import items
from fetch import fetch
from items import Item

from dataflex_tools.core.errors import DataError, FlextoolsError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How many items the pool, the target and each kind's held-out file get."""

    pool: int
    target: int
    held_out: int


# fast: the small model scores it in minutes on two cores; real: the 135M model does about one item a second
SIZES = {"fast": Size(pool=4000, target=99, held_out=99), "real": Size(pool=360, target=24, held_out=24)}
TARGET_SHARE = 0.12
KINDS = sorted([*items.LIBRARY_KINDS, *items.WHEEL_KINDS])
FORMS = {"chat": "messages", "foreign_chat": "messages", "tool_calls": "messages"}  # the other kinds: alpaca


def read_kinds(cache: Path) -> dict[str, list[Item]]:
    """Every kind's items that fit, one for each question across all kinds, in an order that is a hash of the item."""
    seen: set[str] = set()
    kinds: dict[str, list[Item]] = {}
    for kind in KINDS:
        if kind in items.LIBRARY_KINDS:
            found = items.LIBRARY_KINDS[kind]()
        else:
            wheel, read = items.WHEEL_KINDS[kind]
            found = read(fetch(wheel, cache))
        kept = []
        for item in sorted(filter(Item.fits, found), key=_order):
            if item.key() not in seen:
                seen.add(item.key())
                kept.append(item)
        kinds[kind] = kept
    return kinds


def _order(item: Item) -> str:
    return hashlib.sha256(json.dumps([item.turns, item.origin]).encode()).hexdigest()


def balanced(candidates: Sequence[Item], count: int) -> list[Item]:
    """The first `count` items, taken in turn from each subtask."""
    queues: dict[str, list[Item]] = {}
    for item in candidates:
        queues.setdefault(item.subtask, []).append(item)
    turns = zip_longest(*(queues[name] for name in sorted(queues)))
    return [item for turn in turns for item in turn if item is not None][:count]


def shares(available: dict[str, int], target_kind: str, size: int) -> dict[str, int]:
    """Items of each kind in the pool: TARGET_SHARE for the target kind, the rest as equal as the kinds allow.

    Raises DataError if there are not enough items.
    """
    counts = {target_kind: round(size * TARGET_SHARE)}
    left = size - counts[target_kind]
    others = sorted((kind for kind in available if kind != target_kind), key=lambda kind: (available[kind], kind))
    for i, kind in enumerate(others):
        counts[kind] = min(available[kind], left // (len(others) - i))
        left -= counts[kind]
    if left or counts[target_kind] > available[target_kind]:
        raise DataError(
            f"a pool of {size} with {counts[target_kind]} items of {target_kind} needs more items than there are: "
            f"{available}; choose another --target-kind or a smaller --size"
        )
    return counts


def build(out: Path, cache: Path, *, size: Size, target_kind: str) -> dict[str, dict[str, int]]:
    """Write all files; returns {folder: {kind: items}}. Raises DataError if a kind has too few items."""
    held_out: dict[str, list[Item]] = {}
    rest: dict[str, list[Item]] = {}
    for kind, found in read_kinds(cache).items():
        is_library = kind in items.LIBRARY_KINDS
        may_be_held_out = [item for item in found if not is_library or items.is_held_out(item.origin)]
        held_out[kind] = balanced(may_be_held_out, size.held_out + (size.target if kind == target_kind else 0))
        used = {item.turns for item in held_out[kind]}
        rest[kind] = [
            item for item in found if item.turns not in used and not (is_library and items.is_held_out(item.origin))
        ]
    target = held_out[target_kind][: size.target]
    held_out[target_kind] = held_out[target_kind][size.target :]
    if len(held_out[target_kind]) < size.held_out // 2:
        raise DataError(f"{target_kind} has too few items for a target of {size.target}; choose another --target-kind")
    counts = shares({kind: len(found) for kind, found in rest.items()}, target_kind, size.pool)
    written = {
        "pool": {kind: rest[kind][: counts[kind]] for kind in KINDS},
        "target": {target_kind: target},
        "heldout": held_out,
    }
    for folder, kinds in written.items():
        for kind, chosen in kinds.items():
            _write(out / folder / f"{kind}.jsonl", (item.record(FORMS.get(kind, "alpaca")) for item in chosen))
    return {folder: {kind: len(chosen) for kind, chosen in kinds.items()} for folder, kinds in written.items()}


def _write(path: Path, records: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), default="fast")
    parser.add_argument("--target-kind", choices=KINDS, default="docs")
    parser.add_argument("--cache", type=Path, help="folder of unpacked wheels (default: OUT/wheels)")
    args = parser.parse_args()
    cache = args.cache or args.out / "wheels"
    try:
        counts = build(args.out, cache, size=SIZES[args.size], target_kind=args.target_kind)
    except FlextoolsError as error:
        parser.exit(2, f"{error}\n")
    summary = {"size": args.size, "target_kind": args.target_kind, **counts}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for folder, kinds in counts.items():
        print(f"{folder:8}{sum(kinds.values()):6}  " + "  ".join(f"{kind} {n}" for kind, n in kinds.items()))


if __name__ == "__main__":
    main()
