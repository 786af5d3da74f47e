"""Domain weights as the files that other trainers read.

Each format was written after the pages and files named here; docs/export.md says what was tried with which version.

* `datasets`: `interleave_datasets`, huggingface/datasets src/datasets/combine.py. Run with it.
* `llamafactory`: `DataArguments` and `merge_dataset`, hiyouga/LLaMA-Factory src/llamafactory/hparams/data_args.py and
  src/llamafactory/data/data_utils.py. Not run with it.
* `megatron`: `get_blend_from_list` and `normalize`, NVIDIA/Megatron-LM megatron/core/datasets/utils.py; the file of
  `--data-args-path` is divided at white space, megatron/training/utils.py; file names as tools/preprocess_data.py gives
  them. Not run with it.
* `mosaicml`: mosaicml/streaming docs/source/dataset_configuration/mixing_data_sources.md; `streams` by name as in
  mosaicml/llm-foundry llmfoundry/data/text_data.py. Not run with it.
* `olmo`: `SourceMixtureList`, allenai/OLMo-core src/olmo_core/data/source_mixture.py and the files in
  src/olmo_core/data/source_mixtures. Not run with it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dataflex_tools.artifact.files import write_bytes
from dataflex_tools.artifact.folder import check_can_be_made
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError, did_you_mean
from dataflex_tools.report.proportions import Place, Proportions, Wanted, proportions_of

_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt", ".gz", ".zst")
# a text file is one document, as it is when it is scored
_LOADED_BY: dict[str, dict[str, str]] = {
    ".json": {"path": "json"}, ".jsonl": {"path": "json"}, ".csv": {"path": "csv"}, ".parquet": {"path": "parquet"},
    ".txt": {"path": "text", "sample_by": "document"},
}  # fmt: skip


def export(folder: Path, to: str, out: Path, *, wanted: Wanted | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Write the weights of the mixture in `folder` for the trainer `to` (of `FORMATS`) into the folder `out`.

    Returns {format, files, names, weights, step, notes}. Raises ConfigError for wrong settings and for a file in `out` that
    says something else, unless `overwrite`; ArtifactError if `folder` holds no mixture.
    """
    wanted = wanted or Wanted()
    if to not in FORMATS:
        raise ConfigError(f"export: no format is named {to!r}; {did_you_mean(to, FORMATS)}")
    proportions = proportions_of(folder, wanted)
    if to in _DRAW_EXAMPLES:
        proportions = proportions.per_document() if wanted.draws == "documents" else proportions.per_block()
    else:
        require(wanted.draws == "blocks", f"export: --draws has no effect on {to}, which draws blocks of one length")
    contents = FORMATS[to](proportions)
    _write(out, contents, overwrite=overwrite)
    return {
        "format": to,
        "files": [str(out / name) for name in contents],
        "names": list(proportions.names),
        "weights": proportions.weight_K.tolist(),
        "step": proportions.step,
        "notes": list(proportions.notes),
    }


def export_text(result: Mapping[str, Any]) -> str:
    """What `export` wrote, a line each; no trailing newline."""
    return "\n".join([*result["files"], *(f"note: {note}" for note in result["notes"])])


def _datasets(proportions: Proportions) -> dict[str, str]:
    """Names and probabilities, and five lines that interleave; they also load the data where all of it lies in files."""
    groups = {name: [_loaded_by(place) for place in proportions.places[name]] for name in proportions.names}
    is_loadable = all(group and all(group) for group in groups.values())
    mix = {
        "names": list(proportions.names),
        "probabilities": proportions.weight_K.tolist(),
        **({"load": groups} if is_loadable else {}),
        "notes": list(proportions.notes),
        "from": dict(proportions.origin),
    }
    loading = 'parts = [concatenate_datasets([load_dataset(**one) for one in mix["load"][name]]) for name in mix["names"]]'
    yours = 'parts = [my_datasets[name] for name in mix["names"]]  # my_datasets: yours, by domain'
    snippet = (
        f"{proportions.header}import json, pathlib\n"
        "from datasets import concatenate_datasets, interleave_datasets, load_dataset\n"
        'mix = json.loads(pathlib.Path(__file__).with_name("mixture.json").read_text(encoding="utf-8"))\n'
        f"{loading if is_loadable else yours}\n"
        'mixed = interleave_datasets(parts, probabilities=mix["probabilities"], seed=0)  # until one part is used up\n'
    )
    return {"mixture.json": json.dumps(mix, indent=2, ensure_ascii=False) + "\n", "interleave.py": snippet}


def _loaded_by(place: Place) -> dict[str, str]:
    """Arguments of `load_dataset`, empty for what is no file of a known kind."""
    how = _LOADED_BY.get(Path(place.path).suffix.lower())
    return {**how, "data_files": place.path, "split": "train"} if how else {}


def _llamafactory(proportions: Proportions) -> dict[str, str]:
    given = {name: [place.path for place in proportions.places[name] if place.is_given] for name in proportions.names}
    names = [paths[0] if paths else name for name, paths in given.items()]
    for name in names:
        is_one = "," not in name and name == name.strip()
        require(is_one, f"export: {name!r} cannot stand in a list divided by commas; give --source DOMAIN=ENTRY")
    fragment = {
        "dataset": ",".join(names),
        "mix_strategy": "interleave_under",
        "interleave_probs": ",".join(map(repr, proportions.weight_K.tolist())),
    }
    about = (
        "# the names are entries of your dataset_info.json (--source DOMAIN=ENTRY gives another)\n"
        "# interleave_under ends with the first that is used up; interleave_over repeats until all were used\n"
    )
    lines = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fragment.items())
    return {"llamafactory.yaml": proportions.header + about + lines}


def _megatron(proportions: Proportions) -> dict[str, str]:
    """A file for `--data-args-path`, weights and prefixes in turn, and one of comments, which the first cannot hold."""
    lines = []
    for name, place, weight in proportions.weighted("the prefix of its .bin and .idx files"):
        prefix = place.path if place.is_given else f"{_without_endings(place.path)}_text_document"
        is_one = len(prefix.split()) == 1
        require(is_one, f"export: megatron divides its list at white space, found {prefix!r}; give --source '{name}=PREFIX'")
        lines.append(f"{weight!r} {prefix}\n")
    about = (
        f"{proportions.header}# use: pretrain_gpt.py --data-args-path data_args.txt (the weights are scaled to sum to 1)\n"
        "# a prefix that was not given with --source is what this writes for the scored file:\n"
        "#   tools/preprocess_data.py --input FILE --output-prefix FILE_WITHOUT_ENDING --append-eod ...\n"
    )
    return {"data_args.txt": "".join(lines), "data_args.about.txt": about}


def _mosaicml(proportions: Proportions) -> dict[str, str]:
    streams: dict[str, Any] = {}
    for name, place, weight in proportions.weighted("the folder of its shards"):
        path = place.path if place.is_given else _without_endings(place.path)
        require(place.name not in streams, f"export: two streams are named {place.name!r}; give --source '{name}=FOLDER'")
        streams[place.name] = {"remote" if "://" in path else "local": path, "proportion": weight}
    about = "# paths not given with --source are folders of MDS shards, named as the scored files without their ending\n"
    return {"streams.yaml": proportions.header + about + _yaml({"train_loader": {"dataset": {"streams": streams}}})}


def _olmo(proportions: Proportions) -> dict[str, str]:
    paths: dict[str, list[str]] = {name: [] for name in proportions.names}
    for name, place, _ in proportions.weighted("its token files (.npy, patterns are allowed)"):
        paths[name].append(place.path if place.is_given else f"{_without_endings(place.path)}/*.npy")
    weights = proportions.weight_K.tolist()
    sources = [
        {"source_name": name, "target_ratio": weight, "paths": paths[name]}
        for name, weight in zip(proportions.names, weights, strict=True)
    ]
    about = (
        "# read with SourceMixtureList.from_yaml; before OLMo-core had that, the list was named source_configs\n"
        "# a source too small for its share is an error there: give it a max_repetition_ratio above 1\n"
        "# paths not given with --source are token files in folders named as the scored files without their ending\n"
    )
    return {"source_mixture.yaml": proportions.header + about + _yaml({"sources": sources})}


FORMATS: dict[str, Callable[[Proportions], dict[str, str]]] = {
    "datasets": _datasets,
    "llamafactory": _llamafactory,
    "megatron": _megatron,
    "mosaicml": _mosaicml,
    "olmo": _olmo,
}
_DRAW_EXAMPLES = ("datasets", "llamafactory")  # the others draw blocks that they made of the documents


def _without_endings(path: str) -> str:
    while path.lower().endswith(_ENDINGS):
        path = path.rpartition(".")[0]
    return path


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**6))


def _write(out: Path, contents: Mapping[str, str], *, overwrite: bool) -> None:
    check_can_be_made(out)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        path = out / name
        if path.exists() and not overwrite and path.read_bytes() != text.encode():
            raise ConfigError(f"export: {path} is there and says something else; choose another -o, or give --overwrite")
    for name, text in contents.items():
        write_bytes(out / name, text.encode())
