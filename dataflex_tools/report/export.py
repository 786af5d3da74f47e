"""Domain weights as the files that other trainers read.

Each format was written after the pages and files named here; docs/export.md says what was tried with which version.

* `datasets`: `interleave_datasets`, huggingface/datasets src/datasets/combine.py. Run with it.
* `llamafactory`: `DataArguments` and `merge_dataset`, hiyouga/LLaMA-Factory src/llamafactory/hparams/data_args.py and
  src/llamafactory/data/data_utils.py; entries of `dataset_info.json` by data/README.md, data/parser.py and data/loader.py.
  Not run with it.
* `megatron`: `get_blend_from_list` and `normalize`, NVIDIA/Megatron-LM megatron/core/datasets/utils.py; the file of
  `--data-args-path` is divided at white space, megatron/training/utils.py; file names as tools/preprocess_data.py gives
  them. Not run with it.
* `mosaicml`: mosaicml/streaming docs/source/dataset_configuration/mixing_data_sources.md; `streams` by name as in
  mosaicml/llm-foundry llmfoundry/data/text_data.py, folders as scripts/data_prep/convert_dataset_json.py writes them. Not
  run with it.
* `olmo`: `SourceMixtureList`, allenai/OLMo-core src/olmo_core/data/source_mixture.py and the files in
  src/olmo_core/data/source_mixtures. Not run with it.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dataflex_tools.artifact.files import write_bytes
from dataflex_tools.artifact.folder import check_can_be_made
from dataflex_tools.artifact.manifest import read_manifest
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.core.printable import printable
from dataflex_tools.report.loading import loadable
from dataflex_tools.report.proportions import Place, Proportions, Wanted, proportions_of

# writes the text of each domain to a file, given the artifact and the files by domain
CopyText = Callable[[Path, Mapping[str, Path]], None]
_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt", ".gz", ".zst", ".bz2")


def export(
    folder: Path, to: str, out: Path, *, wanted: Wanted | None = None, copy: CopyText | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write the weights of the mixture in `folder` for the trainer `to` (of `FORMATS`) into the folder `out`.

    `copy` also writes the text that the mixture was decided on there, and the trainer is shown that. Returns {format, files,
    names, weights, step, notes}. Raises ConfigError for wrong settings and for a file in `out` that says something else,
    unless `overwrite`; ArtifactError if `folder` holds no mixture.
    """
    wanted = wanted or Wanted()
    if to not in FORMATS:
        raise ConfigError(f"export: no format is named {to!r}; {did_you_mean(to, FORMATS)}")
    copies = _copies(folder, out) if copy is not None else {}
    proportions = proportions_of(folder, wanted, {name: str(path) for name, path in copies.items()})
    if to in _DRAW_EXAMPLES:
        proportions = proportions.per_block() if wanted.draws == "blocks" else proportions.per_document()
    else:
        require(wanted.draws != "documents", f"export: --draws has no effect on {to}, which draws blocks of one length")
        proportions = proportions.per_block()
    proportions, contents = FORMATS[to](proportions, out)
    check_can_be_made(out)
    _check_replaced(out, contents, overwrite=overwrite)
    wanted_copies = {name: path for name, path in copies.items() if name in proportions.names and name not in wanted.paths}
    if copy is not None:
        require(bool(wanted_copies), "export: --copy has no effect: every domain has a --source; leave it out")
        for path in () if overwrite else wanted_copies.values():
            require(not path.exists(), f"export: {path} is there; choose another -o, or give --overwrite")
        copy(folder, wanted_copies)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_bytes(out / name, text.encode())
    return {
        "format": to,
        "files": [*(str(out / name) for name in contents), *map(str, wanted_copies.values())],
        "names": list(proportions.names),
        "weights": proportions.weight_K.tolist(),
        "step": proportions.step,
        "notes": list(proportions.notes),
    }


def export_text(result: Mapping[str, Any]) -> str:
    """What `export` wrote, a line each; no trailing newline."""
    return "\n".join(map(printable, [*result["files"], *(f"note: {note}" for note in result["notes"])]))


def _copies(folder: Path, out: Path) -> dict[str, Path]:
    """The file for the text of each domain: named by it, as far as a file can be."""
    names = sorted((read_manifest(folder).get("corpus") or {}).get("domains") or {})
    plain = [re.sub(r"[^\w.-]", "_", name) for name in names]
    unique = [f"{text}_{place}" if plain.count(text) > 1 else text for place, text in enumerate(plain)]
    return {name: out / "text" / f"{text}.jsonl" for name, text in zip(names, unique, strict=True)}


_LOADING = """import json, pathlib
from datasets import concatenate_datasets, interleave_datasets, load_dataset

folder = pathlib.Path(__file__).resolve().parent
mix = json.loads((folder / "mixture.json").read_text(encoding="utf-8"))


def load(arguments, column):
    if "data_files" in arguments:
        files = [file if "://" in file else str(folder / file) for file in arguments["data_files"]]
        arguments = {**arguments, "data_files": files}
    data = load_dataset(**arguments)
    if column is None:
        return data
    data = data.select_columns([column])
    return data if column == "text" else data.rename_column(column, "text")


def mixture(parts):
    return interleave_datasets([parts[name] for name in mix["names"]], probabilities=mix["probabilities"], seed=0)


"""
_LOADED = """# draws until one part is used up
mixed = mixture({
    name: concatenate_datasets([load(one["arguments"], one["column"]) for one in sources])
    for name, sources in mix["load"].items()
})
"""
_YOURS = """# no way to load {names} is known here: call mixture(parts) with your data sets by domain name
"""


def _datasets(proportions: Proportions, out: Path) -> tuple[Proportions, dict[str, str]]:
    """Names and probabilities, and a program that interleaves; it also loads the data where all of it can be named."""
    known = {name: [_load(place, proportions, out) for place in proportions.places[name]] for name in proportions.names}
    unknown = [name for name, loads in known.items() if not loads or not all(load["arguments"] for load in loads)]
    if unknown:
        note = (
            f"interleave.py cannot load {', '.join(unknown)}: give --source DOMAIN=FILE or --copy, or hand it your data sets"
        )
        proportions = proportions.noted(note)
    mix = {
        "names": list(proportions.names),
        "probabilities": proportions.weight_K.tolist(),
        **({} if unknown else {"load": known}),
        "notes": list(proportions.notes),
        "from": dict(proportions.origin),
    }
    program = proportions.header + _LOADING + (_YOURS.format(names=", ".join(map(repr, unknown))) if unknown else _LOADED)
    return proportions, {"mixture.json": json.dumps(mix, indent=2, ensure_ascii=False) + "\n", "interleave.py": program}


def _load(place: Place, proportions: Proportions, out: Path) -> dict[str, Any]:
    found = loadable(place.path, place.form, place.settings)
    arguments = found.datasets
    if "data_files" in arguments:
        arguments["data_files"] = [_seen_from(out, file) for file in arguments["data_files"]]
    return {"arguments": arguments, "column": found.text_column if proportions.is_packed else None}


def _seen_from(out: Path, file: str) -> str:
    """A file's path: from `out` if it lies in it, so that the folder can be moved; else as it is."""
    root = os.path.join(os.path.abspath(out), "")
    return file.removeprefix(root)


def _llamafactory(proportions: Proportions, out: Path) -> tuple[Proportions, dict[str, str]]:
    """A fragment of the training YAML, and a `dataset_info.json` with what can be said of the data."""
    names, weights, entries, unknown, given = [], [], {}, [], []
    for domain, weight in zip(proportions.names, proportions.weight_K.tolist(), strict=True):
        for place in proportions.places[domain] or (Place("", domain),):
            name = place.path if place.is_given else place.name
            is_one = "," not in name and name == name.strip()
            require(is_one, f"export: {name!r} cannot stand in a list divided by commas; give --source DOMAIN=ENTRY")
            names.append(name)
            weights.append(weight * place.share)
            entry = {} if place.is_given or not place.path else loadable(place.path, place.form, place.settings).llamafactory
            if "file_name" in entry:
                entry["file_name"] = _seen_from(out, entry["file_name"])
            if entry:
                entries[name] = entry
            else:
                (given if place.is_given else unknown).append(name)
    proportions = proportions.noted(*_entry_notes(unknown, given, is_some=bool(entries)))
    fragment = {
        **({} if unknown or given else {"dataset_dir": str(out)}),
        "dataset": ",".join(names),
        "mix_strategy": "interleave_under",
        "interleave_probs": ",".join(map(repr, weights)),
    }
    about = "# interleave_under ends with the first that is used up; interleave_over repeats until all were used\n"
    lines = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fragment.items())
    info = {"dataset_info.json": json.dumps(entries, indent=2, ensure_ascii=False) + "\n"} if entries else {}
    return proportions, {"llamafactory.yaml": proportions.header + about + lines, **info}


def _entry_notes(unknown: list[str], given: list[str], *, is_some: bool) -> list[str]:
    notes = []
    if unknown:
        notes.append(
            f"no entry of dataset_info.json can be written for {', '.join(unknown)}: LLaMA-Factory reads whole files in "
            ".json, .jsonl, .csv, .parquet or .arrow (of .txt every line would be a document); give --copy, or your own "
            "entry with --source DOMAIN=ENTRY"
        )
    if given:
        also = ", and those of the dataset_info.json written here beside them" if is_some else ""
        notes.append(f"of your own dataset_info.json (dataset_dir) are the entries {', '.join(given)}{also}")
    return notes


def _megatron(proportions: Proportions, out: Path) -> tuple[Proportions, dict[str, str]]:
    """A file for `--data-args-path`, weights and prefixes in turn, and one of comments, which the first cannot hold."""
    lines, commands = [], []
    for name, place, weight in proportions.weighted("the prefix of its .bin and .idx files"):
        plain, column = _without_endings(place.path), loadable(place.path, place.form, place.settings).text_column or "text"
        prefix = place.path if place.is_given else f"{plain}_{column}_document"
        is_one = len(prefix.split()) == 1
        require(is_one, f"export: megatron divides its list at white space, found {prefix!r}; give --source '{name}=PREFIX'")
        lines.append(f"{weight!r} {prefix}\n")
        if not place.is_given:
            commands.append(
                f"#   tools/preprocess_data.py --input {_shown_input(place)} --json-keys {column} --output-prefix {plain} "
                "--append-eod ...\n"
            )
    about = (
        f"{proportions.header}# use: pretrain_gpt.py --data-args-path data_args.txt (the weights are scaled to sum to 1)\n"
        + ("# prefixes that were not given with --source are what these write:\n" if commands else "")
        + "".join(commands)
    )
    return proportions, {"data_args.txt": "".join(lines), "data_args.about.txt": about}


def _shown_input(place: Place) -> str:
    """What the converter, which reads one JSON document a line, is given."""
    is_read = Path(place.path).suffix.lower() in (".jsonl", ".ndjson", ".json")
    return place.path if is_read else f"{place.path}-AS-JSONL"


def _mosaicml(proportions: Proportions, out: Path) -> tuple[Proportions, dict[str, str]]:
    streams: dict[str, Any] = {}
    for name, place, weight in proportions.weighted("the folder of its shards"):
        path = place.path if place.is_given else _beside(place.path, "mds")
        require(place.name not in streams, f"export: two streams are named {place.name!r}; give --source '{name}=FOLDER'")
        streams[place.name] = {"remote" if "://" in path else "local": path, "proportion": weight}
    about = (
        "# paths not given with --source are folders of MDS shards, the --out_root of convert_dataset_json.py, named as\n"
        "# the scored files without their ending, or as scored folders with -mds\n"
    )
    text = _yaml({"train_loader": {"dataset": {"streams": streams}}})
    return proportions, {"streams.yaml": proportions.header + about + text}


def _olmo(proportions: Proportions, out: Path) -> tuple[Proportions, dict[str, str]]:
    paths: dict[str, list[str]] = {name: [] for name in proportions.names}
    for name, place, _ in proportions.weighted("its token files (.npy, patterns are allowed)"):
        paths[name].append(place.path if place.is_given else f"{_beside(place.path, 'tokens')}/*.npy")
    weights = proportions.weight_K.tolist()
    sources = [
        {"source_name": name, "target_ratio": weight, "paths": paths[name]}
        for name, weight in zip(proportions.names, weights, strict=True)
    ]
    about = (
        "# read with SourceMixtureList.from_yaml; before OLMo-core had that, the list was named source_configs\n"
        "# a source too small for its share is an error there: give it a max_repetition_ratio above 1\n"
        "# paths not given with --source are token files in folders named as the scored files without their ending, or as\n"
        "# scored folders with -tokens\n"
    )
    return proportions, {"source_mixture.yaml": proportions.header + about + _yaml({"sources": sources})}


FORMATS: dict[str, Callable[[Proportions, Path], tuple[Proportions, dict[str, str]]]] = {
    "datasets": _datasets,
    "llamafactory": _llamafactory,
    "megatron": _megatron,
    "mosaicml": _mosaicml,
    "olmo": _olmo,
}
_DRAW_EXAMPLES = ("datasets", "llamafactory")  # the others draw blocks that they made of the documents


def _without_endings(path: str) -> str:
    path = path.rstrip("/")
    while path.lower().endswith(_ENDINGS):
        path = path.rpartition(".")[0]
    return path


def _beside(path: str, what: str) -> str:
    """A folder for what is made of a source: its path without endings; a folder's own name is taken."""
    plain = _without_endings(path)
    return f"{plain}-{what}" if plain == path.rstrip("/") else plain


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**6))


def _check_replaced(out: Path, contents: Mapping[str, str], *, overwrite: bool) -> None:
    """Raise ConfigError for a file that says something else."""
    for name, text in contents.items():
        path = out / name
        if path.exists() and not overwrite and path.read_bytes() != text.encode():
            raise ConfigError(f"export: {path} is there and says something else; choose another -o, or give --overwrite")
