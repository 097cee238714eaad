"""The report names everything that the source could not give, with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.sync.export import Options, export_runs
from tests.memory_exporter import MemoryExporter
from tests.run_dirs import make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.sync.report import Report


def _lossy(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 0.5}])
    rows = [[0.25, 1, 1775822401.0], [0.125, "one", 1775822402.0], [0.0625, 3, 1775822403.0, "too much"]]
    write_metrics(run, (), rows, append=True)
    (run / "media.jsonl").write_text(
        '{"step": 1, "tag": "val", "type": "image", "path": "media/gone.png"}\n{"step": \n'
    )
    return run


def _told(report: Report) -> list[tuple[str, str]]:
    (line,) = report.runs
    return sorted((str(notice.kind), notice.what) for notice in line.notices)


def test_what_the_source_lost_is_in_the_report(tmp_path: Path) -> None:
    """Bad rows, bad lines and missing files are named with file and line."""
    _lossy(tmp_path)
    report = export_runs([tmp_path / "runs"], MemoryExporter(tmp_path / "boxes"))
    assert report.runs[0].points == 2
    assert _told(report) == [
        ("bad line", "media.jsonl:2"),
        ("bad row", "metrics.csv:4"),
        ("bad row", "metrics.csv:5"),
        ("missing file", "media.jsonl:1"),
    ]


def test_a_dry_run_tells_none(tmp_path: Path) -> None:
    """A plan counts points and media, and only the export has notices."""
    _lossy(tmp_path)
    exporter = MemoryExporter(tmp_path / "boxes")
    (planned,) = export_runs([tmp_path / "runs"], exporter, Options(dry_run=True)).runs
    (done,) = export_runs([tmp_path / "runs"], exporter).runs
    assert (str(planned.action), planned.points, planned.media) == (str(done.action), done.points, done.media)
    assert planned.notices == ()
