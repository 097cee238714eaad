"""Verify, over the reference exporter, finds and names every kind of damage, and nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.options import CompareOptions
from bridge.sync import verify
from bridge.sync.export import export_runs
from bridge.sync.verify import verify_runs
from tests.contract.test_media import run_with_images
from tests.memory_exporter import MEMORY, MemoryExporter
from tests.pictures import log_image, png
from tests.run_dirs import CREATED_S, make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from bridge.exporters.contract import Target
    from bridge.sync.report import RunCheck, VerifyReport

ROWS = [{"step": step, "loss": 0.1 * step, "acc": step} for step in range(8)]


@pytest.fixture
def exporter() -> MemoryExporter:
    return MemoryExporter()


@pytest.fixture
def run(tmp_path: Path, exporter: MemoryExporter) -> Path:
    """Make and export a run with points, text, params and images."""
    path = run_with_images(tmp_path / "runs" / "a")
    rows = [*ROWS, {"step": 8, "phase": "done"}]
    make_run(path, rows, hparams={"lr": 0.1}, tags=["t"], notes="n")
    export_runs([path], exporter)
    return path


def check(path: Path, exporter: MemoryExporter, **options: object) -> RunCheck:
    (line,) = verify_runs([path], exporter, CompareOptions(**options)).runs  # type: ignore[arg-type]
    return line


def differences(line: RunCheck) -> list[tuple[str, str, int | None, str | None, str | None]]:
    return [(str(one.verdict), one.what, one.step, one.expected, one.found) for one in line.differences.first]


def grow(run: Path) -> None:
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    write_metrics(run, header, [[1, 2, None, 9, CREATED_S + 9]], append=True)


def test_what_cannot_be_compared_has_a_reason_and_a_hint(run: Path, exporter: MemoryExporter) -> None:
    """A damaged cursor, one of a newer bridge, and a run that a person deleted have another sign each."""
    with exporter.opened() as box:
        whole = json.loads(box.cursor or "")
    for cursor, is_deleted, sign, reason, hint in (
        ("{", False, "!", "what the target remembers of this run cannot be read", "bridge export rebuilds it"),
        (json.dumps(whole | {"format": 99}), False, "!", "made by a newer bridge", "pip install"),
        (json.dumps(whole), True, "+", "a person deleted this run", "bridge export --rebuild exports it again"),
    ):
        with exporter.opened() as box:
            box.cursor, box.deleted = cursor, is_deleted
        line = check(run, exporter)
        assert (str(line.verdict), reason in line.reason, hint in line.hint) == (sign, True, True), line


def test_growth_since_the_export_is_behind(run: Path, exporter: MemoryExporter) -> None:
    """Rows, images and facts since the export are behind, and a difference only with strict."""
    grow(run)
    log_image(run, 9, "d.png", png(9))
    end = "2026-04-10T13:30:00+00:00"
    write_sidecar(run, status="failed", hparams={"lr": 0.1}, tags=["t", "u"], notes="n", ended_at=end)
    line = check(run, exporter)
    assert (str(line.verdict), line.differences.count) == ("=", 0)
    assert (line.behind.rows, line.behind.media_lines, line.behind.facts) == (1, 1, ("end", "status", "tags"))
    assert verify_runs([run], exporter).exit_code == 0
    assert verify_runs([run], exporter, CompareOptions(strict=True)).exit_code == 4


def test_an_edit_far_back_is_found(run: Path, exporter: MemoryExporter) -> None:
    """A source value changed long after its export, and rows that are gone, are found."""
    file = run / "metrics.csv"
    file.write_text(file.read_text().replace("0.30000000000000004", "0.3"), newline="")
    assert differences(check(run, exporter)) == [("*", "loss", 3, "0.3", "0.30000000000000004")]
    make_run(run, ROWS[:5], hparams={"lr": 0.1}, tags=["t"], notes="n")
    line = check(run, exporter)
    assert (str(line.verdict), differences(line)[0]) == ("*", ("-", "rows", None, "5", "9"))


def test_a_half_filled_target_differs(run: Path, exporter: MemoryExporter) -> None:
    """Points of a broken export past the cursor are found."""
    with exporter.opened() as box:
        before = box.cursor
    grow(run)
    export_runs([run], exporter)
    with exporter.opened() as box:
        box.cursor = before
    assert str(check(run, exporter).verdict) == "*"


def test_a_sample_is_the_same_each_time(tmp_path: Path, exporter: MemoryExporter) -> None:
    """A sample compares the first and last metric and evenly between."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0} | {f"m{number:02}": number for number in range(11)}])
    export_runs([path], exporter)
    with exporter.opened() as box:
        for columns in box.points.values():
            columns[2][0] += 1
    line = check(path, exporter, sample=3)
    assert line.compared.series == 3
    assert [one.what for one in line.differences.first] == ["m00", "m05", "m10"]
    assert check(path, exporter, sample=1).compared.points == 1


@pytest.mark.parametrize("damage", [False, True])
def test_a_large_run_is_compared_in_portions(
    tmp_path: Path, exporter: MemoryExporter, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    """In portions of any size all metrics are compared once, and facts and media once."""
    path = run_with_images(tmp_path / "runs" / "a")
    rows = [{"step": step} | {f"m{number}": number * step for number in range(7)} for step in range(5)]
    make_run(path, rows, hparams={"lr": 0.1})
    export_runs([path], exporter)
    if damage:
        with exporter.opened() as box:
            box.points["m6"][2][4] = 7.0
            box.points["mine"] = box.points["m0"]
    whole = check(path, exporter)
    monkeypatch.setattr(verify, "READ_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(verify, "PORTION", 12)
    parts = check(path, exporter)
    assert (parts.compared.series, parts.compared.points, parts.compared.media) == (7, 35, 3)
    assert parts.compared == whole.compared
    assert [one[:3] for one in differences(parts)] == [one[:3] for one in differences(whole)]
    assert str(parts.verdict) == ("*" if damage else "=")


@pytest.mark.parametrize("size", [verify.READ_AT_ONCE_BYTES, 0], ids=["small", "large"])
def test_a_run_that_is_exported_meanwhile(
    tmp_path: Path, exporter: MemoryExporter, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A metric that another export brings while a run is verified is no difference."""
    monkeypatch.setattr(verify, "READ_AT_ONCE_BYTES", size)
    path = make_run(tmp_path / "runs" / "a", ROWS)
    export_runs([path], exporter)
    opened = exporter.open

    def export_first(*args: Any) -> Target:
        monkeypatch.setattr(exporter, "open", opened)
        make_run(path, [*ROWS, {"step": 8, "new": 1.0}])
        export_runs([path], exporter)
        return opened(*args)

    monkeypatch.setattr(exporter, "open", export_first)
    line = check(path, exporter)
    assert (str(line.verdict), differences(line)) == ("=", [])


def test_the_json_of_a_report(run: Path, exporter: MemoryExporter) -> None:
    """The JSON has the documented fields in version 1."""
    with exporter.opened() as box:
        box.points["acc"][2][2] = float("nan")
    told: list[RunCheck] = []
    report: VerifyReport = verify_runs([run], exporter, told=told.append)
    assert tuple(told) == report.runs
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (data["version"], data["exporter"], data["strict"], data["sample"]) == (1, "memory", False, None)
    assert data["exit_code"] == 4
    counted = {"runs": 1, "different": 1, "differences": 1, "series": 2, "points": 16, "media": 3, "params": 1}
    assert data["totals"] == counted | dict.fromkeys(("same", "source_only", "target_only", "unreadable", "behind"), 0)
    (line,) = data["runs"]
    assert line["differences"] == {
        "count": 1,
        "first": [{"verdict": "*", "file": "metrics.csv", "what": "acc", "step": 2, "expected": "2.0", "found": "nan"}],
    }
    assert (line["where"], line["behind"]) == ("memory:uid-a", {"rows": 0, "media_lines": 0, "facts": []})


NUMBERS = st.sampled_from(["0.1", "1", "1", "2", "nan", "inf", "-inf", "-0.0", "1e-320", "9007199254740993", "True"])
CELLS = st.one_of(NUMBERS, st.sampled_from(["", "text", '"two\nlines"', " 3"]))
ROW = st.builds(
    lambda *cells: ",".join(cells),
    CELLS,
    CELLS,
    st.one_of(st.integers(0, 6).map(str), st.sampled_from(["", "-1", "x", "9223372036854775807"])),
    st.sampled_from(["1775822400.25", "1775822401", "", "later", "1e300"]),
)
LINES = st.lists(st.one_of(ROW, ROW, st.sampled_from(["1", "1,2,3,4,5", "b,a,step,wall_time"])), max_size=25)
CAPABILITIES = {
    "replaces": MEMORY,
    "ordered": replace(MEMORY, ordered_steps=True, replaces_points=False),
    "rebuilds": replace(MEMORY, replaces_points=False),
    "small deltas": replace(MEMORY, replaces_points=False, points_a_delta=4),
}


@pytest.mark.parametrize("kind", CAPABILITIES)
@given(lines=LINES, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4))
@example(lines=["1,1,0,1775822400.25"] * 4 + ["1,1,2,", "1,1,1,1775822400.25"], cuts=[0.0])
@settings(max_examples=40, deadline=None)
def test_any_history_of_exports_verifies(lines: list[str], cuts: list[float], kind: str) -> None:
    """After each export of a growing or torn file verify finds it equal."""
    data = "\r\n".join(["a,b,step,wall_time", *lines, ""]).encode()
    exporter = MemoryExporter(capabilities=CAPABILITIES[kind])
    with tempfile.TemporaryDirectory() as folder:
        for part in [*sorted(cuts), 1.0]:
            path = write_sidecar(Path(folder) / "run")
            (path / "metrics.csv").write_bytes(data[: round(part * len(data))])
            report = export_runs([path], exporter)
            assert [run.reason for run in report.runs if run.failed] == []
            checks = verify_runs([path], exporter, None).runs
            assert [(str(check.verdict), check.reason, check.differences.first) for check in checks] == [("=", "", ())]


@pytest.mark.parametrize("threads", [False, True])
def test_several_workers_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool) -> None:
    """Several workers give each run its check and a second target its line."""
    monkeypatch.setattr("bridge.sync.parallel.WORTH_WORKERS", 0)
    exporter = MemoryExporter(tmp_path / "boxes", capabilities=replace(MEMORY, threads=threads))
    for name in "abc":
        make_run(tmp_path / "runs" / name, ROWS)
    export_runs([tmp_path / "runs"], exporter)
    with exporter.opened() as box:
        box.points["acc"][2][2] = 7.0
        box.extras = ["memory:other"]
    report = verify_runs([tmp_path / "runs"], exporter, CompareOptions(workers=2))
    assert sorted((line.run_id, str(line.verdict), line.differences.count) for line in report.runs) == [
        ("a", "*", 1), ("a", "-", 0), ("b", "=", 0), ("c", "=", 0),
    ]  # fmt: skip
