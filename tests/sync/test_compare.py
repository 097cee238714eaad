"""The comparison finds each kind of difference, and allows only what a target declares."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec.structs import replace

from bridge.exporters.contract import Capabilities, TargetContent, TargetMedia
from bridge.model import MediaEvent, MediaType, Run, RunFile, Series, Status
from bridge.options import ContentOptions
from bridge.sync.compare import FIRST, Findings, compare_facts, compare_media, compare_metric, compare_series
from tests.pictures import png

if TYPE_CHECKING:
    from collections.abc import Sequence

T0 = 1_775_822_400.0
EXACT = Capabilities(time_step=0.0)
MILLI = Capabilities(time_step=0.001)
SINGLE = Capabilities(value_bits=32, time_step=0.0)
CLIPS = Capabilities(infinities=False, time_step=0.0)
STATUSES = {status: status.value.upper() for status in Status} | {Status.RUNNING: ""}
FACTS = Capabilities(statuses=STATUSES)


def series(points: Sequence[Any]) -> Series:
    """Return (step, value) or (step, value, time) as a series; the time is T0 + step unless given."""
    rows = [point if len(point) > 2 else (*point, T0 + point[0]) for point in points]
    step, value, time = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return Series("m", step.astype(np.int64), time, value)


def compared(expected: Sequence[Any], there: Sequence[Any], capabilities: Capabilities = EXACT) -> Findings:
    out = Findings(capabilities)
    compare_series(series(expected), series(there), out)
    return out


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        pytest.param([(2, 0.3), (0, 0.5), (1, 0.4)], [], id="another order"),
        pytest.param([(0, 0.5), (2, 0.3)], [("+", "m", 1, "0.4", None)], id="a deleted point"),
        pytest.param([(0, 0.5), (1, 0.4), (2, 0.3), (9, 7)], [("-", "m", 9, None, "7.0")], id="an invented point"),
        pytest.param([(0, 0.5), (1, 0.4), (1, 0.4), (2, 0.3)], [("-", "m", 1, None, "0.4")], id="a doubled point"),
        pytest.param(
            [(0, 0.5), (1, 0.4000001), (2, 0.3)], [("*", "m", 1, "0.4", "0.4000001")], id="a value in its 7th digit"
        ),
        pytest.param([(0, 0.5), (1, math.nan), (2, 0.3)], [("*", "m", 1, "0.4", "nan")], id="NaN for a number"),
        pytest.param(
            [(0, 0.5), (1, 0.4, T0), (2, 0.3)], [("*", "m (time)", 1, "1775822401.0", "1775822400.0")], id="a time"
        ),
        pytest.param([], [("+", "m", None, "3 points", None)], id="the whole series"),
    ],
)
def test_each_difference_of_a_series_is_found(there: list[Any], expected: list[Any]) -> None:
    """A missing or extra point, or another value or time, is named with its step."""
    out = compared([(0, 0.5), (1, 0.4), (2, 0.3)], there)
    assert [(str(one.verdict), one.what, one.step, one.expected, one.found) for one in out.first] == expected


NEAR = math.nextafter(0.1, 1)
SINGLE_TENTH = float(np.float32(0.1))
LARGEST = 1.7976931348623157e308


@pytest.mark.parametrize(
    ("expected", "there", "capabilities", "count"),
    [
        pytest.param([(0, math.nan), (1, math.inf), (2, -0.0)], None, EXACT, 0, id="odd numbers"),
        pytest.param([(0, 0.1)], [(0, NEAR)], EXACT, 1, id="the last bit"),
        pytest.param([(0, 0.1)], [(0, NEAR)], SINGLE, 0, id="the last bit of 64 in a target of 32"),
        pytest.param([(0, 0.1)], [(0, SINGLE_TENTH)], SINGLE, 0, id="the nearest number of 32 bits"),
        pytest.param([(0, 0.1)], [(0, math.nextafter(SINGLE_TENTH, 1) + 1e-8)], SINGLE, 1, id="another of 32 bits"),
        pytest.param([(0, 1e300)], [(0, math.inf)], SINGLE, 0, id="beyond 32 bits"),
        pytest.param([(0, math.inf), (1, -math.inf)], [(0, LARGEST), (1, -LARGEST)], CLIPS, 0, id="clipped"),
        pytest.param([(0, math.inf)], [(0, 1e308)], CLIPS, 1, id="clipped to another number"),
        pytest.param([(0, math.inf)], [(0, LARGEST)], EXACT, 1, id="clipped without need"),
        pytest.param([(0, 1, T0 + 0.0006)], [(0, 1, T0 + 0.001)], MILLI, 0, id="a time rounded up"),
        pytest.param([(0, 1, T0 + 0.0006)], [(0, 1, T0)], MILLI, 0, id="a time rounded down"),
        pytest.param([(0, 1, T0)], [(0, 1, T0 + 0.0021)], MILLI, 1, id="a time further away"),
        pytest.param([(0, 1, T0)], [(0, 1, T0 + 0.0006)], EXACT, 1, id="a time where times are exact"),
        pytest.param([(0, 1, math.nan)], [(0, 1, T0)], EXACT, 0, id="an estimated time"),
    ],
)
def test_values_and_times_are_as_exact_as_the_target_declares(
    expected: list[Any], there: list[Any] | None, capabilities: Capabilities, count: int
) -> None:
    """A target must hold the nearest number and time that it can, and no other."""
    assert compared(expected, expected if there is None else there, capabilities).count == count


@pytest.mark.parametrize(("deleted", "step", "count"), [(0, 7, 3), (4, 7, 0), (4, 3, 3)])
def test_the_latest_point_may_be_of_a_deleted_event_file(deleted: int, step: int, count: int) -> None:
    """It is at a later step then: a job that went back has a newer file with lower steps. Else it is a difference."""
    own, kept = [(0, 0.5), (5, 0.3)], [(0, 0.5), (5, 0.3), (7, 0.1)]
    held = TargetContent(series={"m": series(kept)}, last={"m": series([(step, 0.1)])})
    out = Findings(EXACT, deleted=deleted)
    compare_metric(series(own), {"m"}, held, ContentOptions(), out)
    assert len([one for one in out.first if "last" in one.what]) == count


def test_all_differences_are_counted_and_the_first_are_shown() -> None:
    """All differences are counted, and only the first are kept."""
    points = [(step, float(step)) for step in range(1000)]
    out = compared(points, [(step, value + 1, T0 - 1) for step, value in points])
    assert out.count == 2000
    assert [one.step for one in out.first] == list(range(FIRST))


def data(name: str) -> bytes:
    """Return a real image that is different for each name."""
    return png(1) + name.encode()


def digest(name: str) -> str:
    return hashlib.sha256(data(name)).hexdigest()


def event(folder: Path, line: int, name: str, *, form: str = "png", caption: str | None = None) -> MediaEvent:
    """Return an event whose file is a real image, whatever its declared format."""
    path = folder / f"{line}.png"
    path.write_bytes(data(name))
    file = RunFile(path=path, size=path.stat().st_size, mtime_ns=0)
    return MediaEvent(line, "s", 0, line, MediaType.IMAGE, f"media/{line}.png", file, form, T0, caption)


def item(index: int, name: str, *, step: int = 0, caption: str | None = None) -> TargetMedia:
    return TargetMedia("s", step, index, digest(name), caption)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        pytest.param([item(0, "a"), item(1, "b")], [], id="equal"),
        pytest.param([item(1, "b"), item(0, "a")], [], id="in any order"),
        pytest.param([item(0, "a", caption="c"), item(1, "b")], [], id="with its caption"),
        pytest.param([item(0, "a")], [("+", "media.jsonl:2", "b", None)], id="a missing image"),
        pytest.param([item(0, "a"), item(1, "x")], [("*", "media.jsonl:2", "b", "x")], id="another image"),
        pytest.param(
            [item(0, "a", caption="d"), item(1, "b")], [("*", "media.jsonl:1", "c", "d")], id="another caption"
        ),
        pytest.param([item(0, "a"), item(1, "b"), item(2, "b")], [("-", "media.jsonl", None, "b")], id="one too many"),
        pytest.param(
            [item(0, "a"), item(1, "b"), item(0, "c", step=3)], [("-", "media.jsonl", None, "c")], id="another step"
        ),
    ],
)
def test_media_by_digest(tmp_path: Path, there: list[TargetMedia], expected: list[Any]) -> None:
    """Media are compared by tag, step, index and digest."""
    out = Findings(EXACT)
    events = [event(tmp_path, 0, "a", caption="c"), event(tmp_path, 1, "b")]
    assert compare_media(events, there, frozenset(), out) == 2
    names: dict[str | None, str] = {digest(name): name for name in "abcx"}
    assert [
        (str(one.verdict), one.file, names.get(one.expected, one.expected), names.get(one.found, one.found))
        for one in out.first
    ] == expected


def test_media_that_may_be_missing(tmp_path: Path) -> None:
    """A converted file must be there in any form; an unsupported format, tag or broken image may be missing."""
    capabilities = Capabilities(media_kept=frozenset({"png"}), media_converted=frozenset({"mp4"}))
    a, b, video = event(tmp_path, 0, "a"), event(tmp_path, 1, "b"), event(tmp_path, 2, "video", form="mp4")
    broken = event(tmp_path, 3, "broken")
    broken.file.path.write_bytes(png(1)[:40])
    for events, there, unsupported, count, expected in (
        ([a, video, event(tmp_path, 4, "c", form="webm")], [item(0, "a"), item(1, "a gif")], set(), 2, []),
        ([a, video], [item(0, "a")], set(), 2, [("+", digest("video"), None)]),
        ([a, b], [item(0, "b")], {"media.s"}, 1, []),
        ([a, b], [item(0, "x")], {"media.s"}, 0, [("-", None, digest("x"))]),
        ([broken, b], [], set(), 1, [("+", digest("b"), None)]),
    ):
        out = Findings(capabilities)
        assert compare_media(events, there, frozenset(unsupported), out) == count
        assert [(str(one.verdict), one.expected, one.found) for one in out.first] == expected


RUN = Run(
    path=Path("/runs/one"),
    identity="uid-one",
    run_id="r/one",
    name="one",
    status=Status.COMPLETED,
    status_word="completed",
    params={"lr": 0.1, "n": 3, "flag": True, "none": None, "api_key": "s3cret", "ckpt_path": "/a"},
    tags=("t", "k:v"),
    notes="some notes",
    start=T0,
    end=T0 + 60,
    last_alive=T0 + 61,
    parent="r",
)
GOOD = TargetContent(
    series={},
    params={"lr": 0.1, "n": 3.0, "flag": True, "api_key": "***", "ckpt_path": "/b"},
    tags=("k:v", "t"),
    notes="some notes",
    name="one",
    status="COMPLETED",
    start=T0,
    end=T0 + 60,
)


def facts(
    there: TargetContent,
    run: Run = RUN,
    capabilities: Capabilities = FACTS,
    skip: frozenset[str] = frozenset(),
    **sent: str,
) -> list[tuple[str, str | None, str | None]]:
    """Return the differences between the facts of a run and those in a target."""
    out = Findings(capabilities)
    compare_facts(run, there, ContentOptions(), skip, sent, out)
    return [(one.what, one.expected, one.found) for one in out.first]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param(
            dict.fromkeys(("params", "tags", "notes", "name", "start")), [], id="what the target has no place for"
        ),
        pytest.param({"name": "two"}, [("name", "one", "two")], id="name"),
        pytest.param({"notes": "some"}, [("notes", "some notes", "some")], id="notes"),
        pytest.param({"tags": ("t",)}, [("tags", "k:v, t", "t")], id="tags"),
        pytest.param({"status": "FAILED"}, [("status", "COMPLETED (completed)", "FAILED")], id="status"),
        pytest.param({"status": ""}, [("status", "COMPLETED (completed)", "nothing")], id="no status"),
        pytest.param({"end": T0 + 61}, [("end", str(T0 + 60), str(T0 + 61))], id="a wrong end time"),
        pytest.param({"end": None}, [("end", str(T0 + 60), None)], id="no end time"),
        pytest.param({"start": T0 + 1}, [("start", str(T0), str(T0 + 1))], id="a wrong start time"),
        pytest.param({"name": "mine", "tags": (), "skip": frozenset({"name", "tags"})}, [], id="edits of people"),
        pytest.param({"notes": "some no…", "truncated": frozenset({"notes"})}, [], id="a cut text"),
        pytest.param(
            {"notes": "other…", "truncated": frozenset({"notes"})},
            [("notes", "some notes", "other…")],
            id="a cut text that begins otherwise",
        ),
        pytest.param({"notes": "some no…"}, [("notes", "some notes", "some no…")], id="a cut without a note"),
        pytest.param(
            {"status": "", "end": None, "unsupported": frozenset({"status", "end"})}, [], id="what the target lacks"
        ),
    ],
)
def test_each_difference_of_the_facts_is_found(changes: dict[str, Any], expected: list[Any]) -> None:
    """A changed fact is named with both values, unless the target said why."""
    skip = changes.pop("skip", frozenset())
    assert facts(replace(GOOD, **changes), skip=skip) == expected


TEXTS = {"lr": "0.1", "n": "3", "flag": "True", "none": "None", "api_key": "***", "ckpt_path": "/a"}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        pytest.param(TEXTS, [], id="texts"),
        pytest.param({"lr": 0.1000001}, [("param lr", "0.1", "0.1000001")], id="another number"),
        pytest.param({"lr": "0.10"}, [("param lr", "0.1", "0.10")], id="another text"),
        pytest.param({"flag": 1.0}, [("param flag", "True", "1.0")], id="a number for a bool"),
        pytest.param({"api_key": "s3cret"}, [("param api_key", "(masked)", "the secret, in clear")], id="a secret"),
        pytest.param({"api_key": "other"}, [("param api_key", "(masked)", "something else")], id="no mask"),
        pytest.param({"extra": 1}, [("param extra", None, "1")], id="one too many"),
        pytest.param({"job_id": "1"}, [], id="a volatile one that a resume no longer has"),
        pytest.param({"lr": ...}, [("param lr", "0.1", None)], id="a missing one"),
        pytest.param({"api_key": ...}, [("param api_key", "***", None)], id="a missing secret"),
        pytest.param({"password": "s3cret"}, [("param password", None, "***")], id="one secret too many"),
    ],
)
def test_each_difference_of_params_is_found(params: dict[str, Any], expected: list[Any]) -> None:
    """A changed or missing param, and a secret in clear, is a difference; one that is None may be missing."""
    assert GOOD.params is not None
    there = {name: value for name, value in {**GOOD.params, **params}.items() if value is not ...}
    assert facts(replace(GOOD, params=there)) == expected
    assert facts(replace(GOOD, params=there, unsupported=frozenset({f"params.{name}" for name in params}))) == []


def test_secrets_in_tags_and_in_nested_params() -> None:
    """A secret in a tag or a nested param must be masked, and is never shown."""
    clear = replace(RUN, tags=("token", "api_key:s3cret"), params={"db": '{"password": "p", "host": "h"}'})
    for tags, param, expected in (
        (("token", "api_key:***"), '{"password": "***", "host": "h"}', []),
        (("token", "api_key:s3cret"), '{"password": "***", "host": "h"}', ["tags"]),
        (("token", "api_key:***"), '{"password": "p", "host": "h"}', ["param db"]),
        (("token",), '{"password": "***", "host": "other"}', ["tags", "param db"]),
    ):
        there = TargetContent(series={}, params={"db": param}, tags=tags, start=T0, end=T0 + 60)
        found = facts(there, clear, EXACT)
        assert [what for what, *_ in found] == expected
        assert "s3cret" not in repr(found)


@pytest.mark.parametrize(("clears", "expected"), [(True, [("end", None, str(T0))]), (False, [])])
def test_a_running_run_with_an_old_end(clears: bool, expected: list[Any]) -> None:
    """Where an end cannot be cleared, a running run may have its old one."""
    there = TargetContent(series={}, status="", end=T0, start=T0)
    capabilities = replace(FACTS, clears_end=clears)
    assert facts(there, capabilities=capabilities, status="running", start=repr(T0), end="") == expected
