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
from bridge.sync.compare import (
    FIRST,
    FactsComparison,
    Findings,
    compare_media,
    compare_series,
    facts_behind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T0 = 1_775_822_400.0
EXACT = Capabilities(time_step=0.0)
MILLI = Capabilities(time_step=0.001)
SINGLE = Capabilities(value_bits=32, time_step=0.0)
CLIPS = Capabilities(infinities=False, time_step=0.0)
STATUSES = {status: status.value.upper() for status in Status} | {Status.RUNNING: ""}

PICTURE = Path(__file__).with_name("picture.png")

Point = "tuple[int, float] | tuple[int, float, float]"


def columns(points: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return (step, value) or (step, value, time) as columns; the time is T0 + step unless given."""
    step = np.array([point[0] for point in points], dtype=np.int64)
    time = np.array([point[2] if len(point) > 2 else T0 + point[0] for point in points], dtype=np.float64)
    return step, time, np.array([point[1] for point in points], dtype=np.float64)


def held(points: Sequence[Any]) -> Series:
    return Series("m", *columns(points))


def found(
    compare: Callable[..., None], expected: Sequence[Any], there: Sequence[Any], capabilities: Capabilities = EXACT
) -> list[tuple[Any, ...]]:
    """Return the differences as (sign, what, step, expected, found)."""
    out = Findings()
    compare("m", held(expected), held(there), capabilities, out)
    assert out.count >= len(out.first)
    return [(str(one.verdict), one.what, one.step, one.expected, one.found) for one in out.first]


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
    assert found(compare_series, [(0, 0.5), (1, 0.4), (2, 0.3)], there) == expected


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
    assert len(found(compare_series, expected, expected if there is None else there, capabilities)) == count


def test_all_differences_are_counted_and_the_first_are_shown() -> None:
    """All differences are counted, and only the first are kept."""
    out = Findings()
    points = [(step, float(step)) for step in range(1000)]
    compare_series("m", held(points), held([(step, value + 1) for step, value in points]), EXACT, out)
    assert out.count == 1000
    assert [one.step for one in out.first] == list(range(FIRST))


def data(name: str) -> bytes:
    """Return a real image that is different for each name."""
    return PICTURE.read_bytes() + name.encode()


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
    out = Findings()
    events = [event(tmp_path, 0, "a", caption="c"), event(tmp_path, 1, "b")]
    assert compare_media(events, there, frozenset(), EXACT, out) == 2
    names = {digest(name): name for name in "abcx"}
    assert [
        (str(one.verdict), one.file, names.get(one.expected or "", one.expected), names.get(one.found or "", one.found))
        for one in out.first
    ] == expected


def test_media_that_the_target_converts_are_counted(tmp_path: Path) -> None:
    """A converted format must be present, and an unsupported one need not be."""
    capabilities = Capabilities(media_kept=frozenset({"png"}), media_converted=frozenset({"mp4"}))
    video = event(tmp_path, 1, "video", form="mp4")
    events = [event(tmp_path, 0, "a"), video, event(tmp_path, 2, "b", form="webm")]
    out = Findings()
    assert compare_media(events, [item(0, "a"), item(1, "a gif")], frozenset(), capabilities, out) == 2
    assert out.first == []
    compare_media(events, [item(0, "a")], frozenset(), capabilities, out)
    assert [one.expected for one in out.first] == [digest("video")]


def test_media_that_the_target_says_it_lacks(tmp_path: Path) -> None:
    """A tag with a notice may have fewer media, but no others."""
    out = Findings()
    events = [event(tmp_path, 0, "a"), event(tmp_path, 1, "b")]
    compare_media(events, [item(0, "b")], frozenset({"media.s"}), EXACT, out)
    assert out.first == []
    compare_media(events, [item(0, "x")], frozenset({"media.s"}), EXACT, out)
    assert [(str(one.verdict), one.found) for one in out.first] == [("-", digest("x"))]


def test_an_undecodable_picture_need_not_be_held(tmp_path: Path) -> None:
    """A broken image may be missing in the target, and a good one may not."""
    broken = event(tmp_path, 0, "a")
    broken.file.path.write_bytes(PICTURE.read_bytes()[:40])
    out = Findings()
    compare_media([broken, event(tmp_path, 1, "b")], [], frozenset(), EXACT, out)
    assert [one.expected for one in out.first] == [digest("b")]


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


def facts(**changes: Any) -> list[tuple[str, str | None, str | None]]:
    """Return the differences that remain when the target holds GOOD with `changes`."""
    skip = changes.pop("skip", frozenset())
    capabilities = changes.pop("abilities", Capabilities(statuses=STATUSES))
    fields = {name: getattr(GOOD, name) for name in GOOD.__slots__}
    out = Findings()
    FactsComparison(RUN, TargetContent(**(fields | changes)), ContentOptions(), capabilities, skip, out).compare({})
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
    assert facts(**changes) == expected


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
        pytest.param({"lr": ...}, [("param lr", "0.1", None)], id="a missing one"),
    ],
)
def test_each_difference_of_params_is_found(params: dict[str, Any], expected: list[Any]) -> None:
    """A changed or missing param, and a secret in clear, is a difference; one that is None may be missing."""
    assert GOOD.params is not None
    there = {name: value for name, value in {**GOOD.params, **params}.items() if value is not ...}
    assert facts(params=there) == expected
    assert facts(params=there, unsupported=frozenset({f"params.{name}" for name in params})) == []


def test_secrets_in_tags_and_in_nested_params() -> None:
    """A secret in a tag or a nested param must be masked, and is never shown."""
    clear = replace(RUN, tags=("token", "api_key:s3cret"), params={"db": '{"password": "p", "host": "h"}'})
    for tags, param, expected in (
        (("token", "api_key:***"), '{"password": "***", "host": "h"}', []),
        (("token", "api_key:s3cret"), '{"password": "***", "host": "h"}', ["tags"]),
        (("token", "api_key:***"), '{"password": "p", "host": "h"}', ["param db"]),
        (("token",), '{"password": "***", "host": "other"}', ["tags", "param db"]),
    ):
        out = Findings()
        there = TargetContent(series={}, params={"db": param}, tags=tags, start=T0, end=T0 + 60)
        FactsComparison(clear, there, ContentOptions(), EXACT, frozenset(), out).compare({})
        assert [one.what for one in out.first] == expected
        assert "s3cret" not in repr(out.first)


def test_a_running_run_with_an_old_end() -> None:
    """Where an end cannot be cleared, a running run may have its old one."""
    for clears, expected in ((True, [("end", None, str(T0))]), (False, [])):
        out = Findings()
        there = TargetContent(series={}, status="", end=T0, start=T0)
        check = FactsComparison(
            RUN, there, ContentOptions(), Capabilities(statuses=STATUSES, clears_end=clears), frozenset(), out
        )
        check.compare({"status": "running", "start": repr(T0), "end": ""})
        assert [(one.what, one.expected, one.found) for one in out.first] == expected


def test_facts_that_changed_since_the_export() -> None:
    """A status or time that changed since the export is behind, not a difference; files keep their whole names."""
    as_sent = {"status": "completed", "start": repr(T0), "end": repr(T0 + 60)}
    assert facts_behind(RUN, (), as_sent) == ()
    then = {"status": "running", "start": repr(T0), "end": ""}
    assert facts_behind(RUN, ("tags", "metrics.csv"), then) == ("end", "metrics.csv", "status", "tags")
