"""Errors a user can act on. Each message says what was found, what was wanted and what to do."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class FlextoolsError(Exception):
    """Wrong use or wrong input; the command line prints the message alone and exits with code 2."""


class ConfigError(FlextoolsError):
    """A setting that is unknown, out of range, or does not fit another one."""


class DataError(FlextoolsError):
    """A corpus or target that cannot be read, or holds what cannot be trained on."""


class ArtifactError(FlextoolsError):
    """An artifact that is missing, unfinished, changed, or made from something else."""


_SHOWN = 24  # names in one line
_NEAR = 0.65  # likeness from which on a name may be meant
_SHORTEST = 3  # letters of a name's beginning that say which is meant
# what other tools call a setting, by their name; written without _ and -
_ALIASES = {
    "lr": ("learning_rate",),
    "learningrate": ("learning_rate",),
    "epochs": ("num_train_epochs",),
    "numepochs": ("num_train_epochs",),
    "steps": ("max_steps",),
    "numsteps": ("max_steps",),
    "bs": ("global_batch_size",),
    "batchsize": ("global_batch_size", "per_device_train_batch_size"),
    "trainbatchsize": ("global_batch_size", "per_device_train_batch_size"),
    "wd": ("weight_decay",),
    "scheduler": ("lr_scheduler_type",),
    "warmupsteps": ("warmup_ratio",),
    "optimizer": ("optim",),
    "gradclip": ("max_grad_norm",),
    "clip": ("max_grad_norm",),
    "randomseed": ("seed",),
    "rank": ("r",),
    "lorar": ("r",),
    "lorarank": ("r",),
    "loraalpha": ("alpha",),
    "maxlength": ("cutoff_len",),
    "maxseqlength": ("cutoff_len",),
    "maxlen": ("cutoff_len",),
    "modelnameorpath": ("path",),
    "modelname": ("path",),
    "dataset": ("data",),
    "outputdir": ("out",),
}


def aliases(name: str) -> tuple[str, ...]:
    """Our names of what other tools call `name`, none if it is not known."""
    return _ALIASES.get(name.lower().replace("_", "").replace("-", ""), ())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error line: the name that is meant, if one is near, else all of them."""
    known = sorted(known)
    meant = [item for item in aliases(name) if item in known]
    begun = sorted((item for item in known if len(name) >= _SHORTEST and item.startswith(name)), key=len)
    near = meant or begun or get_close_matches(name, known, n=1, cutoff=_NEAR)
    if near:
        return f"did you mean {near[0]!r}?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"known: {', '.join(known[:_SHOWN])}{more}" if known else "none exist"


def near_path(path: Path) -> str:
    """A hint for a path that does not exist: what its folder has instead, "" if nothing is near."""
    folder = path.parent
    names = sorted(item.name for item in folder.glob("[!.]*")) if folder.is_dir() else []
    whole = {name.lower(): name for name in names}
    stems = {Path(name).stem.lower(): name for name in names}
    for wanted, name_of, cutoff in ((path.name, whole, 0.8), (path.stem, stems, 0.7)):
        if near := get_close_matches(wanted.lower(), name_of, n=1, cutoff=cutoff):
            return f"did you mean '{folder / name_of[near[0]]}'?"
    return ""


def one_line(error: BaseException, *, limit: int = 200) -> str:
    """The first sentence of a library's message, for the end of a line of ours."""
    text = re.split(r"(?<!i\.e)(?<!e\.g)\. (?=[A-Z])", " ".join(str(error).split()))[0].rstrip(".")
    return (text if len(text) <= limit else f"{text[:limit]}...") or type(error).__name__
