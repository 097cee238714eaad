"""Exports of many runs isolate one run's failure and report it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from bridge.errors import UsageError
from bridge.sync.export import Options, export_runs
from bridge.sync.report import Action, Report, RunReport
from tests.deltas import notices_of
from tests.memory_exporter import MemoryExporter
from tests.run_dirs import make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path


def steps(first: int, last: int, *, metric: str = "loss") -> list[dict[str, object]]:
    return [{"step": step, metric: step / 8} for step in range(first, last)]


def actions(report: Report) -> dict[str, str]:
    return {line.run_id: str(line.action) for line in report.runs}


def test_only_what_is_new_is_sent(tmp_path: Path) -> None:
    """A second export sends nothing, and one after new rows sends only these."""
    run = make_run(tmp_path / "runs" / "a", steps(0, 10))
    exporter = MemoryExporter(tmp_path / "boxes")
    first = export_runs([tmp_path / "runs"], exporter)
    again = export_runs([tmp_path / "runs"], exporter)
    write_metrics(run, (), [[1.25, 10, 1775822500.0], [1.375, 11, 1775822501.0]], append=True)
    grown = export_runs([tmp_path / "runs"], exporter)
    assert [(line.action, line.points) for report in (first, again, grown) for line in report.runs] == [
        (Action.NEW, 10),
        (Action.UNCHANGED, 0),
        (Action.CHANGED, 2),
    ]


def test_an_unreadable_run_does_not_stop_the_others(tmp_path: Path) -> None:
    """An unreadable run is named with its reason and sets the exit code."""
    make_run(tmp_path / "good", steps(0, 3))
    (make_run(tmp_path / "bad", steps(0, 3)) / "sidecar.json").write_text("[1, 2")
    report = export_runs([tmp_path], MemoryExporter())
    assert actions(report) == {"good": "new", "bad": "unreadable"}
    assert report.exit_code == 3
    assert "sidecar.json" in report.failed[0].reason


def test_a_copy_can_be_exported_under_a_new_identity(tmp_path: Path) -> None:
    """`--as` exports a directory as a new run."""
    first = make_run(tmp_path / "runs" / "a", steps(0, 3))
    exporter = MemoryExporter(tmp_path / "boxes")
    export_runs([first], exporter)
    copy = shutil.copytree(first, tmp_path / "copies" / "a")
    report = export_runs([copy], exporter, Options(new_identity="other"))
    assert [(line.identity, str(line.action)) for line in report.runs] == [("other", "new")]
    assert exporter.box("uid-a") is not None
    assert exporter.box("other") is not None


def test_a_copy_that_is_archived_is_named(tmp_path: Path) -> None:
    """`--as` says why no run was chosen."""
    run = make_run(tmp_path / "a", steps(0, 3), archived=True)
    with pytest.raises(UsageError) as caught:
        export_runs([run], MemoryExporter(tmp_path / "boxes"), Options(new_identity="other"))
    assert caught.value.hint == "The only run is archived; --archived includes archived runs."


def test_a_dry_run_plans_the_same_and_touches_nothing(tmp_path: Path) -> None:
    """The plan has the actions and points of the export that follows, which alone has notices."""
    make_run(tmp_path / "runs" / "a", steps(0, 5))
    run = make_run(tmp_path / "runs" / "b", steps(0, 5))
    exporter = MemoryExporter(tmp_path / "boxes")
    export_runs([run], exporter)
    write_metrics(run, (), [["x", 5, 1775822500.0], [0.5, 6, 1775822501.0], [0.25, "one", 1775822502.0]], append=True)
    before = {path: path.read_bytes() for path in (tmp_path / "boxes").glob("*/*")}
    plan = export_runs([tmp_path / "runs"], exporter, Options(dry_run=True))
    assert {path: path.read_bytes() for path in (tmp_path / "boxes").glob("*/*")} == before
    done = export_runs([tmp_path / "runs"], exporter)
    planned, sent = (
        [(line.run_id, line.action, line.points, line.media) for line in report.runs] for report in (plan, done)
    )
    assert planned == sent
    assert (plan.dry_run, plan.totals.notices, done.totals.notices) == (True, 0, 2)


def test_a_deleted_target_stays_deleted_until_a_rebuild_is_asked_for(tmp_path: Path) -> None:
    """A deleted target is left deleted, with a message, until --rebuild."""
    make_run(tmp_path / "runs" / "a", steps(0, 3))
    exporter = MemoryExporter(tmp_path / "boxes")
    export_runs([tmp_path / "runs"], exporter)
    with exporter.opened() as box:
        box.deleted = True
    report = export_runs([tmp_path / "runs"], exporter)
    assert actions(report) == {"a": "deleted"}
    assert report.exit_code == 0
    assert actions(export_runs([tmp_path / "runs"], exporter, Options(rebuild=True))) == {"a": "rebuild"}


def test_runs_that_fail_for_one_reason_share_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of the target is reported once, with the first runs and the number of the others."""
    from bridge.cli import export as command
    from bridge.cli.output import Output

    lines = [
        RunReport(path=f"/runs/{name}", run_id=name, action=Action.FAILED, reason="The server is away.", hint="Run it.")
        for name in "abcde"
    ]
    lines.append(RunReport(path="/runs/f", run_id="f", action=Action.UNREADABLE, reason="f cannot be read."))
    command.print_report(Report(exporter="mlflow", runs=tuple(lines)), Output())
    assert capsys.readouterr().err == ("! a, b, c and 2 more: The server is away.\n  Run it.\n! f: f cannot be read.\n")


def test_what_the_source_lost_is_in_the_report(tmp_path: Path) -> None:
    """Bad rows, bad lines and missing files are named with file and line."""
    run = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 0.5}])
    rows = [[0.25, 1, 1775822401.0], [0.125, "one", 1775822402.0], [0.0625, 3, 1775822403.0, "too much"]]
    write_metrics(run, (), rows, append=True)
    gone = '{"step": 1, "tag": "val", "type": "image", "path": "media/gone.png"}\n'
    (run / "media.jsonl").write_text(gone + '{"step": \n')
    (line,) = export_runs([run], MemoryExporter(tmp_path / "boxes")).runs
    assert line.points == 2
    assert sorted((str(notice.kind), notice.what) for notice in notices_of(line)) == [
        ("bad line", "media.jsonl:2"),
        ("bad row", "metrics.csv:4"),
        ("bad row", "metrics.csv:5"),
        ("missing file", "media.jsonl:1"),
    ]
