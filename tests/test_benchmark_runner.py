"""The benchmark runner compares peers and fails on missed promises."""

from __future__ import annotations

from tests.benchmarks.__main__ import judged, table, with_figures
from tests.benchmarks.rows import row

ROWS = [
    row("write", "peer", 10.0, 1000, "points", at_least=5),
    row("write", "slow peer", 10.0, 1000, "points", at_least=50, note="by hand"),
    row("write", "ours", 1.0, 1000, "points", at_most=0.5),
    row("read", "ours", 1.0, 1000, "points", mib=700.0, at_most_mib=600),
]


def test_the_table_says_what_was_promised_and_missed() -> None:
    """A peer's ratio is its time per unit over ours; whatever exceeds its promise is missed."""
    rows = judged([dict(each) for each in ROWS])
    assert [(each["ratio"], each["held"]) for each in rows] == [
        (10.0, True), (10.0, False), (None, False), (None, False)
    ]  # fmt: skip
    assert table(rows).splitlines()[2:] == [
        "| write | peer | 10.000 | 100 points | 10 | promised 5 |",
        "|  | slow peer | 10.000 | 100 points | 10 | promised 50; **missed**; by hand |",
        "|  | ours | 1.000 | 1,000 points |  | promised 0.5 s at most; **missed** |",
        "| read | ours | 1.000 | 1,000 points |  | 700 MiB, promised 600 at most; **missed** |",
    ]


def test_a_page_gets_its_figures() -> None:
    """Figures replace the section of that name and nothing else."""
    page = "# Speed\n\n## The figures\n\nold\n\n### One\n\n1\n\n## Why\n\nwords\n"
    assert with_figures(page, "new\n") == "# Speed\n\n## The figures\n\nnew\n\n## Why\n\nwords\n"
