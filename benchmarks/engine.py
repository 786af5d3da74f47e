"""Speed of the gradient signal beside plain training, a one-by-one loop and DataFlex: `python benchmarks/engine.py`.

One model, one set of real samples, one run; repetitions are interleaved and medians reported. See benchmarks/README.md.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import upstream
from transformers import Qwen2Config, Qwen2ForCausalLM

from dataflex_tools.artifact.signal import SignalStore, vector_columns
from dataflex_tools.data.corpus import open_corpus
from dataflex_tools.data.sources import SourceSpec
from dataflex_tools.data.tokenized import RenderSettings, Tokens, tokenize_corpus
from dataflex_tools.models.lora import add_lora, seeded
from dataflex_tools.models.settings import LoraSettings
from dataflex_tools.ops.adam import AdamScaling, Moments
from dataflex_tools.ops.sketch import make_projection
from dataflex_tools.report.tables import table
from dataflex_tools.score.batches import pad_batch, token_batches
from dataflex_tools.score.engine import measure
from dataflex_tools.score.gradient import GradientSignal
from dataflex_tools.score.losses import per_sample_loss
from dataflex_tools.score.settings import GradientSettings

DIM, SHORT, CUTOFF, VOCAB = 8192, 100, 256, 10240
CHUNK = 16  # DataFlex projects this many samples at a time and generates its matrix anew for each chunk
SMALL_DIM, QUICK_DIM = 512, 128
DEMO = Path(__file__).parent.parent / "pipelines" / "demo"


@dataclass(frozen=True)
class Subset:
    """Some rows of a tokenized corpus, as a corpus of their own."""

    tokens: Tokens
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids_N16(self) -> np.ndarray:
        """Sample ids, (N, 16) uint8."""
        return self.tokens.ids_N16[self.rows]

    @property
    def num_tokens_N(self) -> np.ndarray:
        """Tokens of each row, (N,)."""
        return self.tokens.num_tokens_N[self.rows]

    def rows_with_labels(self) -> np.ndarray:
        """All rows, (N,): rows without labels were left out before."""
        return np.arange(len(self))

    def input_ids(self, row: int) -> np.ndarray:
        """Token ids of a row, (T,) int32."""
        return self.tokens.input_ids(int(self.rows[row]))

    def labels(self, row: int) -> np.ndarray:
        """Labels of a row, (T,) int64."""
        return self.tokens.labels(int(self.rows[row]))

    def batches(self) -> list[np.ndarray]:
        """The batches the engine makes of it, when it fits in one part."""
        return token_batches(self.num_tokens_N, 2048)


def read_pool(folder: Path | None, scratch: Path) -> tuple[Tokens, str]:
    """Tokens of the instruction pool in `folder`, else of standard-library docstring -> function items."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    files = sorted(folder.glob("*.jsonl")) if folder else []
    name = f"instruction pool {folder}"
    if not files:
        sys.path.insert(0, str(DEMO))
        from items import code

        name, files = "standard-library docstring -> function items", [scratch / "code.jsonl"]
        files[0].write_text("".join(json.dumps(item.record("alpaca")) + "\n" for item in code()), encoding="utf-8")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<eos>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    core.train_from_iterator((str(text) for line in lines for text in _texts(json.loads(line))), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    corpus = open_corpus([SourceSpec(path=str(file)) for file in files], scratch, group="domain")
    render = RenderSettings(template="plain", cutoff_len=CUTOFF)
    return tokenize_corpus(corpus, tokenizer, render, scratch, tokenizer_sha256="0" * 64), name


def _texts(record: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in record["messages"]] if "messages" in record else list(record.values())


def make_model() -> tuple[torch.nn.Module, Moments]:
    """17M Qwen2-type with LoRA r=16 on all linear layers (884,736 parameters), B not zero, and Adam moments for it."""
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    with seeded(0):
        model = add_lora(Qwen2ForCausalLM(config), LoraSettings(r=16, alpha=32, target_modules="all-linear"), seed=0)
        first, second = {}, {}
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
            if parameter.requires_grad:
                first[name] = torch.randn_like(parameter) * 1e-4
                second[name] = torch.rand_like(parameter) * 1e-7 + 1e-9
    return model.eval(), Moments(step=100, exp_avg=first, exp_avg_sq=second)


def plain(model: torch.nn.Module, subset: Subset) -> None:
    """Forward and backward of the engine's batches and loss, parameter gradients summed over a batch as in training."""
    for rows in subset.batches():
        sum_B, num_B = per_sample_loss(model, pad_batch(subset, rows))
        (sum_B / num_B).mean().backward()
        model.zero_grad(set_to_none=True)


def plain_transformers(model: torch.nn.Module, subset: Subset) -> None:
    """The same batches with the loss of transformers itself, which computes logits at every position."""
    for rows in subset.batches():
        model(**pad_batch(subset, rows), use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)


def signal(model: torch.nn.Module, moments: Moments, subset: Subset, scratch: Path) -> None:
    """The whole gradient signal into a new store: gradients, Adam, projection, Parquet, manifest."""
    with TemporaryDirectory(dir=scratch) as folder:
        gradient = GradientSignal(model, GradientSettings(dim=DIM, part_rows=max(512, len(subset))), moments)
        store = SignalStore(Path(folder) / "s", {"kind": "gradient"}, vector_columns(DIM, "float16"))
        assert measure(gradient, subset, store, title="gradient") == len(subset)
        store.finish({})


def one_by_one(model: torch.nn.Module, subset: Subset, moments: Moments | None) -> None:
    """One backward per sample; with `moments` each gradient is Adam-scaled and projected by our own fast operations."""
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    projection = make_projection("sketch", {name: w.numel() for name, w in weights.items()}, DIM, seed=0)
    scaling = {
        name: AdamScaling(moments.exp_avg[name].flatten(), moments.exp_avg_sq[name].flatten(), step=moments.step)
        for name in (weights if moments else ())
    }  # fmt: skip
    for row in range(len(subset)):
        sum_B, num_B = per_sample_loss(model, pad_batch(subset, [row]))
        (sum_B / num_B).sum().backward()
        out_BD = torch.zeros(1, DIM)
        with torch.no_grad():
            for name in scaling:
                projection.add(out_BD, scaling[name].apply_(weights[name].grad.reshape(1, -1)), name)
        model.zero_grad(set_to_none=True)


@dataclass
class Row:
    """One line of the table: what was run on which samples, and the seconds of each repetition."""

    name: str
    subset: Subset
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Samples per second, from the median."""
        return len(self.subset) / statistics.median(self.seconds)

    def cells(self) -> list[str]:
        """The line's texts."""
        tokens, median = int(self.subset.num_tokens_N.sum()), statistics.median(self.seconds)
        spread = f"{min(self.seconds):.2f} - {max(self.seconds):.2f}"
        return [self.name, f"{len(self.subset)}", f"{tokens / len(self.subset):.0f}", f"{median:.2f}", spread,
                f"{self.rate:.3g}", f"{tokens / median:,.0f}"]  # fmt: skip


def interleaved(calls: Sequence[tuple[str, Subset, Callable[[Subset], None]]], *, repeats: int) -> list[Row]:
    """Time every call once per repetition, one after the other; a first pass over a few samples is not counted."""
    rows = [Row(name, subset, []) for name, subset, _ in calls]
    for repeat in range(-1, repeats):
        for row, (_, subset, call) in zip(rows, calls, strict=True):
            used = Subset(subset.tokens, subset.rows[:8]) if repeat < 0 else subset
            start = time.perf_counter()
            call(used)
            if repeat >= 0:
                row.seconds.append(time.perf_counter() - start)
        if repeat >= 0:
            print(f"repetition {repeat + 1} of {repeats} done", file=sys.stderr)
    return rows


def spread_over_lengths(subset: Subset, count: int) -> Subset:
    """`count` rows at even quantiles of the length."""
    order = np.argsort(subset.num_tokens_N, kind="stable")
    return Subset(subset.tokens, subset.rows[order[((np.arange(count) + 0.5) / count * len(order)).astype(int)]])


def dataflex_rows(model: torch.nn.Module, moments: Moments, subset: Subset, count: int, *, dim: int,
                  scratch: Path) -> tuple[list[Row], float]:  # fmt: skip
    """DataFlex on `count` samples at `dim`, and its seconds per sample in full chunks.

    With less than a chunk its matrix is generated for few samples; the same two sizes at a small dim say what that costs.
    """
    selector = upstream.load_selector()
    names = dict(model.named_parameters())
    state = {names[n]: {"exp_avg": moments.exp_avg[n], "exp_avg_sq": moments.exp_avg_sq[n]} for n in moments.exp_avg}
    rows = []
    is_partial = count < CHUNK and dim > SMALL_DIM
    sizes = [(count, dim)] + ([(count, SMALL_DIM), (CHUNK, SMALL_DIM)] if is_partial else [])
    for number, width in reversed(sizes):
        part = spread_over_lengths(subset, number)
        samples = [pad_batch(part, [row]) for row in range(number)]
        seconds = upstream.seconds_of_features(
            selector, model, samples, state, dim=width, folder=scratch / f"dataflex-{number}-{width}"
        )
        model.eval()
        rows.insert(0, Row(f"DataFlex LessSelector, D={width}", part, [seconds]))
        print(f"DataFlex at D={width}: {number} samples in {seconds:.0f} s", file=sys.stderr)
    per_sample = 1 / rows[0].rate
    return rows, per_sample * (rows[1].rate / rows[2].rate if is_partial else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--short", type=int, default=96, help=f"samples under {SHORT} tokens, for the one-by-one loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dataflex-samples", type=int, default=4, help=f"0: leave DataFlex out; {CHUNK}: a full chunk")
    parser.add_argument("--pool", type=Path, default=Path(".demo/small/pool"), help="folder of JSONL files")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="smoke run: few samples, DataFlex at a small dim")
    given = parser.parse_args()
    if given.quick:
        given.samples, given.short, given.repeats = 24, 16, 1
        given.dataflex_samples = min(given.dataflex_samples, 2)
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    with TemporaryDirectory(prefix="flextools-bench-") as folder:
        run(given, Path(folder))
    print(f"\nload average before: {load:.2f}" + (" - the machine was busy: do not trust the ratios" if load > 0.7 else ""))


def run(given: argparse.Namespace, scratch: Path) -> None:
    """Measure and print."""
    tokens, source = read_pool(given.pool if given.pool.is_dir() else None, scratch)
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(np.asarray(tokens.num_labels_N) > 0))
    is_short = np.asarray(tokens.num_tokens_N)[shuffled] < SHORT
    mixed, short = Subset(tokens, shuffled[: given.samples]), Subset(tokens, shuffled[is_short][: given.short])
    model, moments = make_model()
    rows = interleaved(
        [
            ("plain forward+backward", mixed, lambda s: plain(model, s)),
            ("gradient signal", mixed, lambda s: signal(model, moments, s, scratch)),
            ("plain, loss of transformers", mixed, lambda s: plain_transformers(model, s)),
            ("plain forward+backward, short", short, lambda s: plain(model, s)),
            ("gradient signal, short", short, lambda s: signal(model, moments, s, scratch)),
            ("one by one, short", short, lambda s: one_by_one(model, s, None)),
            ("one by one + projection, short", short, lambda s: one_by_one(model, s, moments)),
        ],
        repeats=given.repeats,
    )
    base, ours, _, plain_short, ours_short, loop, loop_projected = rows
    time_ratio = statistics.median(ours.seconds) / statistics.median(base.seconds)
    under = f"under {SHORT} tokens"
    ratios = [
        ("gradient signal time / plain time", time_ratio, "<= 1.15"),
        (f"gradient signal / one by one + projection, {under}", ours_short.rate / loop_projected.rate, ">= 1.5"),
        (f"gradient signal / one by one without projection, {under}", ours_short.rate / loop.rate, "-"),
        (f"plain / one by one without projection, {under} (what batching alone gives)", plain_short.rate / loop.rate, "-"),
    ]
    if given.dataflex_samples:
        dim = QUICK_DIM if given.quick else DIM
        theirs, seconds = dataflex_rows(model, moments, mixed, given.dataflex_samples, dim=dim, scratch=scratch)
        rows += theirs
        ratios.append((f"gradient signal (D={DIM}) / DataFlex (D={dim}), as measured", ours.rate / theirs[0].rate, "-"))
        if not given.quick:
            ratios.append((f"the same with DataFlex in full chunks of {CHUNK}", ours.rate * seconds, ">= 100"))
    show(rows, ratios, source=source, model=model, repeats=given.repeats)


def show(rows: Sequence[Row], ratios: Sequence[tuple[str, float, str]], *, source: str, model: torch.nn.Module,
         repeats: int) -> None:  # fmt: skip
    """Print the table and the ratios."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    base, lora = sum(n for n, trained in sizes if not trained), sum(n for n, trained in sizes if trained)
    print(f"{source}; at most {CUTOFF} tokens")
    print(f"Qwen2 type, {base / 1e6:.1f}M + {lora:,} LoRA parameters (r=16, all linear layers), float32, random weights")
    print(f"D={DIM}, {torch.get_num_threads()} threads, {repeats} repetitions (DataFlex 1), torch {torch.__version__}\n")
    columns = ["what", "samples", "mean tokens", "median s", "min - max s", "samples/s", "tokens/s"]
    print(table(columns, [row.cells() for row in rows], right=columns[1:]))
    print()
    print(table(["ratio", "value", "wanted"], [[n, f"{v:.3g}", w] for n, v, w in ratios], right=["value", "wanted"]))


if __name__ == "__main__":
    main()
