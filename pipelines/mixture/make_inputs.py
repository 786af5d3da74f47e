"""The mixture recipes' inputs, made where they are not there yet: `python pipelines/mixture/make_inputs.py`.

Text domains in .mix/text (see text.py), models in .mix/model and .mix/moe (see model.py). What is finished is left as it is.
"""

import argparse
import logging
import sys
from pathlib import Path

from dataflex_tools.core.errors import FlextoolsError

logger = logging.getLogger("flextools.mixture")


def make_inputs(out: Path, wanted: str) -> None:
    """Text and models under `out`; each kind's last file says that it is complete. Raises ConfigError or DataError."""
    if not (out / "summary.json").exists():
        import text

        logger.info("making text domains in %s, about a minute", out / "text")
        print(text.as_table(text.build(out, wanted)), flush=True)
    if not (out / "moe" / "tokenizer.json").exists():
        import model

        model.build(out / "text", out)
        logger.info("made %s and %s", out / "model", out / "moe")


def main() -> None:
    """Command line; a user's error is one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".mix"))
    parser.add_argument("--set", choices=("auto", "full", "pip"), default="auto", dest="wanted", help="see text.py")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        make_inputs(given.out, given.wanted)
    except FlextoolsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
