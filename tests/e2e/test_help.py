"""What it costs to ask."""

import resource
import subprocess
import sys

import pytest

from tests.e2e.conftest import SCRIPT

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "pyarrow", "sklearn", "deepspeed")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom dataflex_tools.cli import main\nsys.argv = ['flextools', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.e2e
def test_help_answers_within_half_a_second_of_work() -> None:
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([SCRIPT, "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5
