"""The benchmark runner compares peers and fails on missed promises."""

from __future__ import annotations

from tests.benchmarks.__main__ import judge, table
from tests.benchmarks.rows import row


def _rows() -> list[dict[str, object]]:
    made = [
        row("write a million points", "peer", 10.0, 1000, "points", at_least=5),
        row("write a million points", "slow peer", 10.0, 1000, "points", at_least=50, note="by hand"),
        row("write a million points", "ours", 1.0, 1000, "points", at_most=0.5),
        row("read them", "ours", 1.0, 1000, "points", mib=700.0, at_most_mib=600),
    ]
    return [{"benchmark": "b"} | each for each in made]


def test_peers_are_compared_per_unit_with_ours() -> None:
    """A peer's ratio is its time per unit over ours, and a promise below it is not held."""
    rows = _rows()
    judge(rows)
    assert [(row["ratio"], row["held"]) for row in rows] == [(10.0, True), (10.0, False), (None, False), (None, False)]


def test_the_table_says_what_was_promised_and_missed() -> None:
    """Each row shows time, rate, ratio and whether its promise holds."""
    rows = _rows()
    judge(rows)
    assert table(rows) == [
        "",
        "write a million points",
        "  peer                                          10.000 s            100 points/s  10 x ours  (promised 5 x: held)",  # noqa: E501 - one line of the table
        "  slow peer                                     10.000 s            100 points/s  10 x ours  (promised 50 x: MISSED)  (by hand)",  # noqa: E501 - one line of the table
        "  ours                                           1.000 s          1,000 points/s  (promised 0.5 s: MISSED)",
        "",
        "read them",
        "  ours                                           1.000 s          1,000 points/s  (700 MiB, promised 600: MISSED)",  # noqa: E501 - one line of the table
    ]
