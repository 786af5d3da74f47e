"""The command line: options to settings, results to text or JSON. Nothing is computed here."""

import errno
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dataflex_tools.core import dist
from dataflex_tools.core.config import apply_overrides, load_yaml, require
from dataflex_tools.core.errors import ArtifactError, ConfigError, FlextoolsError, one_line
from dataflex_tools.core.printable import PrintableFormatter, printable

app = typer.Typer(
    help="Data-centric training of language models in two phases: score data once, store it, train many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _examples(*commands: str) -> str:
    """For the end of a command's help, a paragraph each."""
    return "\n\n".join(["Examples:", *commands])


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        _echo(f"flextools {version('flextools')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings of this stage")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.SUBKEY=VALUE", help="any setting; repeatable")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be computed and reused; write nothing")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="[DOMAIN=]SOURCE",
        help="file, folder, FOLDER:SPLIT, 'PATTERN', ORG/NAME:SPLIT of the Hub, or DIR/dataset_info.json:ENTRY; repeatable",
    ),
]
Target = Annotated[
    list[str] | None, typer.Option("--target", metavar="[SUBTASK=]SOURCE", help="samples of what to improve; repeatable")
]
Model = Annotated[str | None, typer.Option("--model", help="model folder or Hub name")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="leave out and count unreadable records")]


def _use_cache(folder: str | None) -> str | None:
    if folder is not None:
        from dataflex_tools.core.cache import VARIABLE

        os.environ[VARIABLE] = folder
    return folder


Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        envvar="FLEXTOOLS_CACHE",
        callback=_use_cache,
        help="corpora and tokens go there; beside the artifacts if not given",
    ),
]
NoProject = Annotated[bool, typer.Option("--no-project", help="leave the settings of flextools.yaml out")]


@app.command(
    epilog=_examples(
        "flextools score --method less --model Qwen/Qwen2.5-0.5B-Instruct --data pool.jsonl --target want.jsonl",
        "flextools score --method doremi --model MODEL --data code=code/ --data web=web.jsonl --dry-run",
    )
)
def score(
    method: Annotated[str | None, typer.Option("--method", help="`flextools methods` lists them")] = None,
    model: Model = None,
    data: Data = None,
    target: Target = None,
    out: Annotated[str | None, typer.Option("--out", help="artifact folder; artifacts/METHOD if not given")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="artifact that a control imitates")] = None,
    drop_overlap: Annotated[bool, typer.Option("--drop-overlap", help="leave out pool rows that are target rows")] = False,
    skip_bad: SkipBad = False,
    config: Config = None,
    set_: Set = None,
    cache: Cache = None,
    no_project: NoProject = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an artifact in --out")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure signals with a model, let a method decide, and write both down as an artifact."""
    from dataflex_tools.stages.config import build

    given = {
        "method": method, "model.path": model, "data": data, "target": target, "out": out, "reference": reference,
        "drop_overlap": drop_overlap or None,
    }  # fmt: skip
    values = _settings("score", config, given, set_, skip_bad, is_alone=no_project)
    if "out" not in values and "method" in values:
        values["out"] = f"artifacts/{values['method']}"
    settings = build("score", values)
    if dry_run:
        from dataflex_tools.stages.estimate import estimate_score

        _print_estimate(estimate_score(settings, overwrite=overwrite), as_json=as_json)
        return
    from dataflex_tools.stages.score import score as run_stage

    manifest = run_stage(settings, overwrite=overwrite)
    if dist.is_main():
        _echo(json.dumps(manifest) if as_json else f"{settings.out}  {manifest['digest']}")


@app.command(
    epilog=_examples(
        "flextools train --artifacts artifacts/less --fraction 0.05",
        "flextools train --artifacts artifacts/less artifacts/doremi --num-samples 10000 --set training.max_steps=500",
    )
)
def train(
    artifacts: Annotated[list[str] | None, typer.Option("--artifacts", help="plans to follow")] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[ARTIFACT]...", help="further plans")] = None,
    fraction: Annotated[float | None, typer.Option("--fraction", help="share of the pool to train on, in (0, 1]")] = None,
    num_samples: Annotated[int | None, typer.Option("--num-samples", help="samples to train on")] = None,
    num_tokens: Annotated[int | None, typer.Option("--num-tokens", help="tokens to train on")] = None,
    unit: Annotated[str | None, typer.Option("--unit", help="what --fraction is of: samples or tokens")] = None,
    model: Model = None,
    data: Data = None,
    out: Annotated[str | None, typer.Option("--out", help="run folder; runs/ARTIFACT-BUDGET-SEED if not given")] = None,
    skip_bad: SkipBad = False,
    config: Config = None,
    set_: Set = None,
    cache: Cache = None,
    no_project: NoProject = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train on what an artifact picked or mixed; a killed run goes on where its last checkpoint stands.

    Trained are all weights on packed text or from random weights, else a LoRA adapter; --set full=true or false decides.
    """
    from dataflex_tools.stages.config import build
    from dataflex_tools.stages.train import default_out

    given = {
        "artifacts": [*(artifacts or []), *(more or [])] or None, "model.path": model, "data": data, "out": out,
        "budget.fraction": fraction, "budget.num_samples": num_samples, "budget.num_tokens": num_tokens,
        "budget.unit": unit,
    }  # fmt: skip
    values = _settings("train", config, given, set_, skip_bad, is_alone=no_project)
    if "out" not in values and values.get("artifacts"):
        values["out"] = default_out(values)
    settings = build("train", values)
    if dry_run:
        from dataflex_tools.stages.estimate import estimate_train

        _print_estimate(estimate_train(settings), as_json=as_json)
        return
    from dataflex_tools.stages.train import train as run_stage

    manifest = run_stage(settings)
    if dist.is_main():
        _echo(json.dumps(manifest) if as_json else f"{settings.out}  {manifest['digest']}")


@app.command(
    epilog=_examples(
        "flextools evaluate runs/less-0.05-seed0 --data heldout.jsonl",
        "flextools evaluate runs/natural runs/doremi",
    )
)
def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="folders of finished runs")],
    data: Data = None,
    name: Annotated[str | None, typer.Option("--name", help="result file, without .json")] = None,
    skip_bad: SkipBad = False,
    config: Config = None,
    set_: Set = None,
    cache: Cache = None,
    no_project: NoProject = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Loss, perplexity and bits per byte per domain of data, or of a run's own held-out text; several runs side by side."""
    from dataflex_tools.stages.config import build

    given = [{"run": run, "data": data, "name": name} for run in runs]
    settings = [
        build("evaluate", _settings("evaluate", config, values, set_, skip_bad, is_alone=no_project)) for values in given
    ]
    if dry_run:
        from dataflex_tools.stages.estimate import estimate_evaluate

        _print_estimates({each.run: estimate_evaluate(each) for each in settings}, as_json=as_json)
        return
    from dataflex_tools.report.tables import losses_table, runs_table
    from dataflex_tools.stages.evaluate import evaluate as run_stage

    results = {run: run_stage(each) for run, each in zip(runs, settings, strict=True)}
    if dist.is_main():
        first = results[runs[0]]
        if as_json:
            _echo(json.dumps(first if len(runs) == 1 else results))
        else:
            _echo(losses_table(first) if len(runs) == 1 else runs_table(results))


@app.command(
    epilog=_examples(
        "flextools fit --ratios shares.csv --metrics losses.csv",
        "flextools fit --ratios shares.csv --metrics losses.csv --natural tokens.csv --out artifacts/fit",
    )
)
def fit(
    ratios: Annotated[
        str | None, typer.Option("--ratios", help="table of runs: the share of each domain in each run")
    ] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="table of runs: what was measured after each run")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", metavar="METRIC[=WEIGHT]", help="metric to lower; the mean of all if not given; repeatable"
        ),
    ] = None,
    higher_is_better: Annotated[bool, typer.Option("--higher-is-better", help="raise the target instead")] = False,
    natural: Annotated[
        list[str] | None,
        typer.Option(
            "--natural",
            metavar="FILE|DOMAIN=AMOUNT",
            help="shares or tokens of your data; the mean of the runs if not given",
        ),
    ] = None,
    index: Annotated[str | None, typer.Option("--index", help="column that names the runs in both tables")] = None,
    out: Annotated[str | None, typer.Option("--out", help="artifact folder for the mixture; none if not given")] = None,
    config: Config = None,
    set_: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an artifact in --out")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fit runs that you have: from their mixtures and metrics to the mixture predicted to be best."""
    from dataflex_tools.stages.config import build
    from dataflex_tools.stages.fit import fit as run_stage
    from dataflex_tools.stages.fit import given_values

    given = {
        "ratios": ratios,
        "metrics": metrics,
        "target": given_values(target, option="--target"),
        "higher_is_better": higher_is_better or None,
        "natural": given_values(natural, option="--natural"),
        "index": index,
        "out": out,
    }
    settings = build("fit", _settings("fit", config, given, set_, skip_bad=False, is_alone=True))
    if dry_run:
        from dataflex_tools.stages.estimate import estimate_fit

        _print_estimate(estimate_fit(settings, overwrite=overwrite), as_json=as_json)
        return
    from dataflex_tools.report.mixtures import fit_text

    result = run_stage(settings, overwrite=overwrite)
    if dist.is_main():
        _echo(json.dumps(result) if as_json else fit_text(result))


@app.command(
    epilog=_examples(
        "flextools run pipelines/less.yaml --dry-run",
        "flextools run artifacts/less/manifest.json --set seed=1",
    )
)
def run(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, or the manifest.json of a result to make again")],
    cache: Cache = None,
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the stages of a recipe; what is already done is not done again."""
    from dataflex_tools.stages.pipeline import describe_steps, load_steps, run_steps

    steps = load_steps(recipe, set_ or [])
    if dry_run:
        text = describe_steps(steps, as_json=as_json)
        if dist.is_main():
            _echo(text)
        return
    results = run_steps(steps)
    if as_json and dist.is_main():
        _echo(json.dumps(results))


@app.command(
    epilog=_examples(
        "flextools inspect artifacts/less --with-text",
        "flextools inspect artifacts/doremi --picture weights.svg",
    )
)
def inspect(
    artifact: Annotated[Path, typer.Argument(help="folder of an artifact")],
    k: Annotated[int, typer.Option("-k", min=0, help="best and worst rows to show")] = 5,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="show the rows' text: reads the data that the artifact names")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="[DOMAIN=]SOURCE", help="where that data is here; repeatable")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="draw a mixture's weights to a .png or .svg")
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """What an artifact is and from what it was made; how its scores lie and its best and worst rows, or its weights."""
    from dataflex_tools.report.inspect import describe, summarise
    from dataflex_tools.report.mixtures import is_mixture
    from dataflex_tools.stages.look import texts_of

    if picture is not None:
        from dataflex_tools.report.picture import draw_mixture

        draw_mixture(artifact, picture)
    wants_text = (with_text or bool(data)) and not is_mixture(artifact)
    text_of = texts_of(artifact, data or ()) if wants_text else None
    if as_json:
        _echo(json.dumps(summarise(artifact, text_of=text_of, k=k)))
    else:
        _echo(describe(artifact, text_of=text_of, k=k))


@app.command(
    epilog=_examples(
        "flextools compare artifacts/less artifacts/tsds",
        "flextools compare artifacts/less artifacts/random --fraction 0.01 --fraction 0.1",
    )
)
def compare(
    artifacts: Annotated[list[Path], typer.Argument(metavar="A B [ARTIFACT]...", help="folders of plans of one kind")],
    fraction: Annotated[
        list[float] | None, typer.Option("--fraction", help="share of the samples to pick, in (0, 1]; repeatable")
    ] = None,
    as_json: Json = False,
) -> None:
    """Plans side by side: what their picks share and are made of, how alike they rank; or weights of mixtures."""
    from dataflex_tools.report.compare import FRACTIONS, compare_text
    from dataflex_tools.report.compare import compare as compare_plans
    from dataflex_tools.report.mixtures import are_mixtures, compare_mixtures, compare_mixtures_text

    if are_mixtures(artifacts):
        require(not fraction, "compare: --fraction has no effect on mixtures, which pick no samples; leave it out")
        mixtures = compare_mixtures(artifacts)
        _echo(json.dumps(mixtures) if as_json else compare_mixtures_text(mixtures))
        return
    result = compare_plans(artifacts, fraction or FRACTIONS)
    _echo(json.dumps(result) if as_json else compare_text(result))


@app.command(
    epilog=_examples(
        "flextools export artifacts/doremi --to llamafactory -o mixture",
        "flextools export artifacts/doremi --to megatron -o mixture --source code=data/code_text_document",
    )
)
def export(
    artifact: Annotated[Path, typer.Argument(help="folder of a mixture")],
    to: Annotated[str, typer.Option("--to", help="datasets, llamafactory, megatron, mosaicml or olmo")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the files")],
    step: Annotated[int | None, typer.Option("--step", help="weights of this optimizer step; the last if not given")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="DOMAIN=PATH", help="where the trainer finds a domain; repeatable"),
    ] = None,
    draws: Annotated[
        str | None, typer.Option("--draws", help="documents or blocks: what datasets and llamafactory draw; documents")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="also write the text, without what is held out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files in --out")] = False,
    as_json: Json = False,
) -> None:
    """Write a mixture's weights as another trainer reads them."""
    from dataflex_tools.report.export import export as export_mixture
    from dataflex_tools.report.export import export_text
    from dataflex_tools.report.proportions import Wanted
    from dataflex_tools.stages.look import copy_text

    wanted = Wanted(step, tuple(source or ()), draws)
    result = export_mixture(artifact, to, out, wanted=wanted, copy=copy_text if copy else None, overwrite=overwrite)
    _echo(json.dumps(result) if as_json else export_text(result))


@app.command(
    "bench-select",
    epilog=_examples(
        "flextools bench-select pipelines/demo/bench.yaml --dry-run",
        "flextools bench-select my.yaml --set seeds=5",
    ),
)
def bench_select(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, as pipelines/demo/bench.yaml")],
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Does a method beat random here? Trains on each method's pick and on random ones, and compares target losses."""
    from dataflex_tools.report.bench import bench_estimate_text, bench_text
    from dataflex_tools.stages.bench_select import bench_select as run_bench
    from dataflex_tools.stages.bench_select import estimate_bench, load_bench

    bench = load_bench(recipe, set_ or [])
    if dry_run:
        estimate = estimate_bench(bench)
        _echo(json.dumps(estimate) if as_json else bench_estimate_text(estimate))
        return
    result = run_bench(bench)
    if dist.is_main():
        _echo(json.dumps(result) if as_json else bench_text(result))


@app.command(
    "bench-mix",
    epilog=_examples(
        "flextools bench-mix pipelines/mixture/bench.yaml --dry-run",
        "flextools bench-mix my.yaml --set seeds=5",
    ),
)
def bench_mix(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, as pipelines/mixture/bench.yaml")],
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Does a mixture beat the natural proportions here? Trains on each with several seeds, and compares held-out text."""
    from dataflex_tools.report.bench import bench_estimate_text, bench_mix_text
    from dataflex_tools.stages.bench_mix import bench_mix as run_bench
    from dataflex_tools.stages.bench_mix import estimate_bench_mix, load_bench_mix

    bench = load_bench_mix(recipe, set_ or [])
    if dry_run:
        estimate = estimate_bench_mix(bench)
        _echo(json.dumps(estimate) if as_json else bench_estimate_text(estimate))
        return
    result = run_bench(bench)
    if dist.is_main():
        _echo(json.dumps(result) if as_json else bench_mix_text(result))


@app.command(
    epilog=_examples(
        "flextools verify artifacts/less",
        "flextools verify artifacts/* artifacts/signals/* --json",
    )
)
def verify(artifacts: Annotated[list[Path], typer.Argument(help="folders of artifacts")], as_json: Json = False) -> None:
    """Recompute every digest; exit code 1 if anything differs from what was written."""
    from dataflex_tools.artifact.manifest import verify_artifact

    faults: dict[str, list[str]] = {}
    unreadable: list[ArtifactError] = []
    for folder in artifacts:
        try:
            faults[str(folder)] = verify_artifact(folder)
        except ArtifactError as error:  # the others are still worth an answer
            unreadable.append(error)
    if as_json:
        _echo(json.dumps(faults))
    else:
        for folder, lines in faults.items():
            _echo("\n".join(printable(f"{folder}: {line}") for line in lines or ["ok"]))
    if unreadable:
        raise ArtifactError("; ".join(map(str, unreadable)))
    if any(faults.values()):
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "flextools methods",
        "flextools methods --json",
    )
)
def methods(as_json: Json = False) -> None:
    """Every method: name, kind, the signals it needs or what it observes, cost, paper."""
    from dataflex_tools.methods import METHODS
    from dataflex_tools.methods.base import OnlineMixer, Selector, SwarmMixer
    from dataflex_tools.report.tables import methods_table

    rows, faults = [], METHODS.faults()
    broken = {point.partition(" ")[0] for point in faults}
    for name in METHODS.names():
        try:
            cls = METHODS.find(name)
        except ConfigError:
            if name not in broken:
                raise
            continue  # named below
        needs, observes = set(), []
        if issubclass(cls, Selector):
            needs = {f"{need.kind} ({need.side})" for need in cls(cls.Settings()).needs()}
        elif issubclass(cls, OnlineMixer):
            observes = [cls.observes]
        elif issubclass(cls, SwarmMixer):
            observes = ["held_out_loss"]
        own = {"name": name, "kind": cls.kind, "signals": sorted(needs), "observes": observes}
        rows.append({**own, "cost": cls.cost, "paper": cls.paper})
    _echo(json.dumps(rows) if as_json else methods_table(rows))
    for fault in faults.values():
        _echo(f"not usable: {fault}", err=True)


def _settings(
    stage: str,
    config: Path | None,
    given: Mapping[str, Any],
    overrides: Sequence[str] | None,
    skip_bad: bool,
    *,
    is_alone: bool,
) -> dict[str, Any]:
    """The project file, then YAML, then options, then --set; each wins over the one before."""
    from dataflex_tools.stages.config import laid_over
    from dataflex_tools.stages.project import find_project

    values: dict[str, Any] = load_yaml(config) if config else {}
    if values.pop("stage", stage) != stage:
        raise FlextoolsError(f"{config} is not a config of the {stage} stage; use `flextools run {config}`")
    options: dict[str, Any] = {}
    for path, value in given.items():
        *above, key = path.split(".")
        node = options.setdefault(above[0], {}) if above and value is not None else options
        node |= {key: value} if value is not None else {}
    values = apply_overrides(laid_over(values, options), overrides or [])
    project = None if is_alone else find_project(Path.cwd())
    if project is not None:
        logging.getLogger("flextools").info("settings from %s", os.path.relpath(project.path))
        values = laid_over(project.settings(stage, values), values)
        project.check_inputs(values)
    if skip_bad:
        from dataflex_tools.stages.config import with_skip_bad

        values = with_skip_bad(values)
    return values


def _print_estimate(estimate: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    from dataflex_tools.report.tables import estimate_table

    if dist.is_main():
        _echo(json.dumps(asdict(estimate)) if as_json else estimate_table(asdict(estimate)))


def _echo(text: str, *, err: bool = False) -> None:
    """The one way to the terminal besides log lines: what data says cannot steer it."""
    typer.echo(printable(text, lines=True), err=err)


def _print_estimates(estimates: Mapping[str, Any], *, as_json: bool) -> None:
    """One document in any case: of several runs a mapping of run to estimate, or a table under each run's name."""
    from dataclasses import asdict

    from dataflex_tools.report.tables import estimate_table

    if len(estimates) == 1:
        _print_estimate(*estimates.values(), as_json=as_json)
    elif dist.is_main() and as_json:
        _echo(json.dumps({name: asdict(estimate) for name, estimate in estimates.items()}))
    elif dist.is_main():
        _echo("\n\n".join(f"{name}\n{estimate_table(asdict(each))}" for name, each in estimates.items()))


def start_logging() -> None:
    """Log lines to stderr as plain text, rank 0 only; the libraries' own chatter stays off."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger = logging.getLogger("flextools")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if dist.is_main() else logging.ERROR)
    logger.propagate = False
    # one bar per task is enough: the libraries' own bars for files and shards stay off
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # deepspeed greets on stdout, which belongs to the command's answer
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


_RANK_0_FIRST = 3.0  # seconds
# typer has the class of all wrong options, but no public name for it
_WrongOption = typer.BadParameter.__mro__[2]
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TOO_LARGE = ("File too large", "os error 27")
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
_FULL = ("No space left", "os error 28", "PytorchStreamWriter failed writing", "unexpected pos", "iostream error")
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG)


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    start_logging()
    try:
        code = app(standalone_mode=False)
    except FlextoolsError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:  # a full disk comes as any type; a defect keeps its traceback
        if isinstance(error, _WrongOption):
            if not (message := " ".join(error.format_message().split()).rstrip(".")):
                sys.exit(2)  # no command: the help was printed
            command = error.ctx.command_path if error.ctx is not None else "flextools"
            _fail(f"{message}; see `{command} --help`")
        elif message := _wrong_machine(error):
            _fail(message)
        else:
            raise
    finally:
        dist.finish()
    if code == 130 and dist.is_main():
        _echo("stopped; the same command goes on where this one stopped", err=True)
    sys.exit(code or 0)


def _wrong_machine(error: Exception) -> str:
    """What the machine refused, "" if it is something else; writers in Rust and C++ have their own types for it."""
    text = " ".join(str(error).split())
    is_full = isinstance(error, OSError) and error.errno in _NO_SPACE
    if is_full or any(mark in text for mark in _FULL):
        return "no space left on the disk; free some and run the same command again: it goes on with what is finished"
    if (isinstance(error, OSError) and error.errno == errno.EFBIG) or any(mark in text for mark in _TOO_LARGE):
        return "a file would be larger than the system allows (see `ulimit -f`, or the file system's limit); write elsewhere"
    is_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if is_memory or (isinstance(error, RuntimeError) and any(mark in text for mark in _NO_MEMORY)):
        detail = f" ({one_line(error)})" if text else ""
        return f"not enough memory{detail}; take a smaller model, batch or token budget, or a machine with more"
    if isinstance(error, UnicodeEncodeError):
        char = ascii(error.object[error.start : error.start + 1])
        return f"text with {char} cannot be written as {error.encoding}; it is damaged, in the artifact or in the data"
    if isinstance(error, OSError) and error.errno in _NO_ACCESS and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    return ""


def _fail(message: str) -> NoReturn:
    if not dist.is_main():
        # what all ranks find, rank 0 says, and the launcher ends the others meanwhile
        time.sleep(_RANK_0_FIRST)
        message = f"rank {dist.rank()}: {message}"
    _echo(f"error: {printable(message)}", err=True)
    dist.finish()
    sys.exit(2)
