"""The words of a bench's answer."""

from typing import Any

from dataflex_tools.report.bench import bench_text, cell


def interval(mean: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "level": 0.95, "num_pairs": 3}


def arm(name: str, loss: float, **versus: dict[str, Any]) -> dict[str, Any]:
    spread = {"mean": loss, "std": 0.5}
    return {
        "name": name, "method": name, "is_control": name.startswith("random"), "versus": versus, "target_loss": spread,
        "other_loss": None, "target_share": None, "seconds": None,
        **{key: {"mean": 1200.0, "std": 0.0} for key in ("samples", "tokens", "steps")},
    }  # fmt: skip


def result(*arms: dict[str, Any], seeds: int = 3) -> dict[str, Any]:
    return {"recipe": {"seeds": seeds, "target_groups": ["say"]}, "notes": ["mind this"], "arms": list(arms)}


def test_a_method_beats_cannot_be_told_from_or_loses_to_a_control() -> None:
    down, none, up = interval(-0.3, -0.4, -0.2), interval(-0.1, -0.4, 0.2), interval(0.2, 0.1, 0.3)
    text = bench_text(
        result(
            arm("less", 2.0, random=down, random_length_matched=none), arm("near", 2.5, random=up), arm("random", 2.3)
        )
    )  # fmt: skip
    assert "less beats random (-0.3000 [-0.4000, -0.2000]) and cannot be told from random_length_matched" in text
    assert "near loses to random (+0.2000 [+0.1000, +0.3000])" in text
    assert "note: mind this" in text
    assert "too narrow" in text


def test_a_control_of_another_methods_lengths_is_no_part_of_the_answer() -> None:
    names = [f"random_length_matched_{name}" for name in ("less", "near")]
    versus = {name: interval(-0.3, -0.4, -0.2) for name in ("random", *names)}
    text = bench_text(result(arm("less", 2.0, **versus), arm("near", 2.0, **versus)))
    (line,) = [line for line in text.splitlines() if line.startswith("less beats")]
    assert names[0] in line
    assert names[1] not in line


def test_one_seed_gives_a_direction_and_says_that_it_is_no_more() -> None:
    text = bench_text(result(arm("less", 2.0, random=interval(-0.3, None, None)), seeds=1))
    assert "less is below random (-0.3000)" in text
    assert "one seed tells no gain from luck" in text


def test_what_no_arm_has_is_no_column() -> None:
    text = bench_text(result(arm("less", 2.0)))
    assert "target share" not in text
    assert "1,200" in text


def test_a_cell_is_mean_and_deviation_if_there_is_one() -> None:
    assert cell({"mean": 1, "std": 0.5}, ".1f") == "1.0 +- 0.5"
    assert cell({"mean": 1, "std": 0.0}, ".1f") == cell({"mean": 1, "std": None}, ".1f") == "1.0"
    assert cell(None, ".1f") == "-"
