"""Nothing is lost silently: what the source could not give stands in the report, by name and place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.exporters import find_exporter
from bridge.exporters.memory import MemoryExporter
from bridge.sync.export import Options, export_runs
from tests.exporters.tensorboard.pictures_by_hand import draw
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
    """Bad rows, bad lines and missing files are named with the file and the line that they stand in."""
    _lossy(tmp_path)
    report = export_runs([tmp_path / "runs"], MemoryExporter(tmp_path / "boxes"))
    assert report.runs[0].points == 2
    assert _told(report) == [
        ("bad line", "media.jsonl:2"),
        ("bad row", "metrics.csv:4"),
        ("bad row", "metrics.csv:5"),
        ("missing file", "media.jsonl:1"),
    ]


def test_a_dry_run_tells_the_same(tmp_path: Path) -> None:
    """The plan names every notice that the export will have."""
    _lossy(tmp_path)
    exporter = MemoryExporter(tmp_path / "boxes")
    planned = export_runs([tmp_path / "runs"], exporter, Options(dry_run=True))
    assert _told(planned) == _told(export_runs([tmp_path / "runs"], exporter))


def test_a_plan_counts_the_pictures_that_the_export_will_show(tmp_path: Path) -> None:
    """What TensorBoard cannot show, by its format or because it cannot be read, is no picture sent but a notice."""
    run = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 0.5}])
    (run / "media").mkdir()
    draw(run / "media" / "good.png")
    (run / "media" / "broken.png").write_bytes(b"no picture")
    (run / "media" / "scan.tiff").write_bytes(b"II*\0")
    (run / "media.jsonl").write_text(
        "".join(
            f'{{"step": {step}, "tag": "val", "type": "image", "path": "media/{name}"}}\n'
            for step, name in enumerate(("good.png", "broken.png", "scan.tiff"))
        )
    )
    exporter = find_exporter("tensorboard")(logdir=tmp_path / "tb")
    planned = export_runs([tmp_path / "runs"], exporter, Options(dry_run=True))
    done = export_runs([tmp_path / "runs"], exporter)
    assert [report.runs[0].media for report in (planned, done)] == [1, 1]
    assert _told(planned) == _told(done)
