"""The README of an artifact: a dataset card, so that `datasets.load_dataset(folder)` and the Hub find the rows."""

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import yaml

from dataflex_tools.core.printable import printable

CARD = "README.md"

_MEANING = {
    "row": "position of the sample in the corpus",
    "sample_id": "content hash of the sample (16 bytes); the same text has the same id in any corpus",
    "domain": "the source the sample comes from",
    "num_tokens": "tokens of the sample, prompt included",
    "score": "what the method decided, higher is better; -inf: never selected",
    "num_labels": "label tokens of the sample: those it is trained on",
    "loss": "mean loss over the label tokens, in nats",
    "loss_sum": "loss summed over the label tokens, in nats",
    "token_loss": "loss of each label token in its order, in nats",
    "norm": "length of the vector before it was scaled to 1",
    "value": "the vector, scaled to length 1",
}
_MEANING_IN_SIGNAL = {"row": "position of the sample within this signal"}
_MEANING_IN_MIXTURE = {
    "step": "optimizer step, from 0, from which on the weights hold",
    "domain": "name of the domain",
    "weight": "share of the training that the domain gets; sums to 1 over the domains of a step",
}


def dataset_card(
    body: Mapping[str, Any], schema: pa.Schema, *, data_files: str, further: Mapping[str, str] | None = None
) -> str:
    """The card's text for a manifest `body`; `data_files`: name or pattern of the Parquet files that hold the rows.

    `further`: files of other columns, by the name under which `datasets.load_dataset(folder, name)` finds them.
    """
    is_signal, is_mixture = body["kind"] == "signal", body.get("facet") == "mix"
    what = body["signal"] if is_signal else body["method"]
    front = {
        "pretty_name": f"flextools {'mixture' if is_mixture else body['kind']}: {what}",
        "license": body.get("licence") or "unknown",
        "tags": ["flextools", "data-mixing" if is_mixture else "data-selection", what],
        "configs": [
            {"config_name": "default", "default": True, "data_files": data_files},
            *({"config_name": name, "data_files": file} for name, file in (further or {}).items()),
        ],
    }
    own = _MEANING_IN_SIGNAL if is_signal else _MEANING_IN_MIXTURE if is_mixture else {}
    meaning = {**_MEANING, **own}
    columns = "".join(f"| {as_text(f.name)} | {f.type} | {meaning.get(f.name, 'detail of the method')} |\n" for f in schema)
    facts = "".join(f"* {name}: {as_text(value)}\n" for name, value in _facts(body))
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {as_text(front['pretty_name'])}\n\n{facts}\n"
        f"| column | type | meaning |\n|---|---|---|\n{columns}\n"
        f"```python\nimport datasets\nrows = datasets.load_dataset(\"path/to/this/folder\")['train']\n```\n\n"
        "`manifest.json` holds the settings and the SHA-256 of every file; `flextools verify` checks them.\n"
    )


# what begins or ends markup inside a line of Markdown; HTML and entities among it
_MARKUP = re.compile(r"[\\`*\[\]<>&|~$!]|(?<!\w)_|_(?!\w)|(?<=www)\.|:(?=//)", re.IGNORECASE)


def as_text(text: Any) -> str:
    """One line of Markdown that reads as `text`: markup, HTML and links in it are spelled out, control characters too."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def _facts(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    corpus, model = body.get("corpus") or {}, body.get("model") or {}
    facts = [("samples", f"{corpus['rows']:,}")] if "rows" in corpus else []
    if body.get("facet") == "mix":
        facts += _mixture_facts(body["stats"])
    elif domains := corpus.get("domains"):
        shown = ", ".join(str(name) for name in list(domains)[:20])
        facts.append(("domains", shown + (f" and {len(domains) - 20} more" if len(domains) > 20 else "")))
    if "name" in model:
        facts.append(("model", f"{model['name']} (weights SHA-256 {str(model.get('sha256'))[:16]}...)"))
    return facts


def _mixture_facts(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    weights = sorted(stats["weights"].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {weight:.4g}" for name, weight in weights[:20])
    more = f" and {len(weights) - 20} more" if len(weights) > 20 else ""
    return [("weights", shown + more), *(("warning", text) for text in stats["warnings"])]
