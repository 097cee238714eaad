"""The comparison finds each kind of difference, and allows only what a target declares."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

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
from bridge.sync.report import Difference, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T0 = 1_775_822_400.0
EXACT = Capabilities(time_step=0.0)
MILLI = Capabilities(time_step=0.001)
SINGLE = Capabilities(value_bits=32, time_step=0.0)
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


def test_equal_series_have_no_difference() -> None:
    """Equal points have no difference, NaN and infinities included, in any order."""
    points = [(0, 0.1), (1, math.nan), (2, math.inf), (3, -0.0)]
    assert found(compare_series, points, points[::-1]) == []


@pytest.mark.parametrize(
    ("there", "expected"),
    [
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


def test_the_last_bit_counts_where_values_are_exact() -> None:
    """A 64-bit target must hold the exact value, a 32-bit one the nearest."""
    near = math.nextafter(0.1, 1)
    assert found(compare_series, [(0, 0.1)], [(0, near)]) == [("*", "m", 0, "0.1", repr(near))]
    assert found(compare_series, [(0, 0.1)], [(0, near)], SINGLE) == []
    assert found(compare_series, [(0, 0.1)], [(0, float(np.float32(0.1)))], SINGLE) == []
    above = float(np.nextafter(np.float32(0.1), np.float32(1)))
    assert len(found(compare_series, [(0, 0.1)], [(0, above)], SINGLE)) == 1


def test_a_value_beyond_32_bits_is_infinite_there() -> None:
    """A value beyond float32 is infinite in a 32-bit target, without a difference."""
    assert found(compare_series, [(0, 1e300)], [(0, math.inf)], SINGLE) == []


def test_clipped_infinities() -> None:
    """Where a target declares infinities as clipped, only the largest finite number stands for them."""
    clips = Capabilities(infinities=False)
    largest = 1.7976931348623157e308
    assert found(compare_series, [(0, math.inf), (1, -math.inf)], [(0, largest), (1, -largest)], clips) == []
    assert len(found(compare_series, [(0, math.inf)], [(0, 1e308)], clips)) == 1
    assert len(found(compare_series, [(0, math.inf)], [(0, largest)])) == 1


def test_times_are_as_fine_as_declared() -> None:
    """A time may differ by the target's resolution, and an estimated one by anything."""
    assert found(compare_series, [(0, 1, T0 + 0.0006)], [(0, 1, T0 + 0.001)], MILLI) == []
    assert found(compare_series, [(0, 1, T0 + 0.0006)], [(0, 1, T0)], MILLI) == []
    assert len(found(compare_series, [(0, 1, T0)], [(0, 1, T0 + 0.0021)], MILLI)) == 1
    assert len(found(compare_series, [(0, 1, T0)], [(0, 1, T0 + 0.0006)], EXACT)) == 1
    assert found(compare_series, [(0, 1, math.nan)], [(0, 1, T0)], EXACT) == []


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


def test_a_picture_that_nobody_can_decode_need_not_be_held(tmp_path: Path) -> None:
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


def test_equal_facts_have_no_difference() -> None:
    """Facts in the target's types, in another order, or masked as asked are equal."""
    assert facts() == []
    words = {"lr": "0.1", "n": "3", "flag": "True", "none": "None", "api_key": "***", "ckpt_path": "/a"}
    assert facts(params=words) == []


def test_what_a_target_has_no_place_for_is_not_compared() -> None:
    """None means that the target has no place for a fact."""
    assert facts(params=None, tags=None, notes=None, name=None, start=None) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"name": "two"}, ("name", "one", "two"), id="name"),
        pytest.param({"notes": "some"}, ("notes", "some notes", "some"), id="notes"),
        pytest.param({"tags": ("t",)}, ("tags", "k:v, t", "t"), id="tags"),
        pytest.param({"status": "FAILED"}, ("status", "COMPLETED (completed)", "FAILED"), id="status"),
        pytest.param({"status": ""}, ("status", "COMPLETED (completed)", "nothing"), id="no status"),
        pytest.param({"end": T0 + 61}, ("end", str(T0 + 60), str(T0 + 61)), id="a wrong end time"),
        pytest.param({"end": None}, ("end", str(T0 + 60), None), id="no end time"),
        pytest.param({"start": T0 + 1}, ("start", str(T0), str(T0 + 1)), id="a wrong start time"),
    ],
)
def test_each_difference_of_the_facts_is_found(changes: dict[str, Any], expected: tuple[str, str, str]) -> None:
    """A changed fact is named with both values."""
    assert facts(**changes) == [expected]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        pytest.param({"lr": 0.1000001}, ("param lr", "0.1", "0.1000001"), id="another number"),
        pytest.param({"lr": "0.10"}, ("param lr", "0.1", "0.10"), id="another text"),
        pytest.param({"flag": 1.0}, ("param flag", "True", "1.0"), id="a number for a bool"),
        pytest.param({"api_key": "s3cret"}, ("param api_key", "(masked)", "the secret, in clear"), id="a secret"),
        pytest.param({"api_key": "other"}, ("param api_key", "(masked)", "something else"), id="no mask"),
        pytest.param({"extra": 1}, ("param extra", None, "1"), id="one too many"),
    ],
)
def test_each_difference_of_params_is_found(params: dict[str, Any], expected: tuple[str, str, str]) -> None:
    """A changed param, and a secret in clear, is a difference."""
    assert GOOD.params is not None
    assert facts(params={**GOOD.params, **params}) == [expected]


def test_a_missing_param_is_found() -> None:
    """A missing param is a difference unless it is None, which some targets cannot hold."""
    assert facts(params={"n": 3, "flag": True, "api_key": "***", "ckpt_path": "/a"}) == [("param lr", "0.1", None)]


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


def test_what_people_edited_is_equal() -> None:
    """Facts that people edited in the target are not compared."""
    assert facts(name="mine", tags=("mine",), skip=frozenset({"name", "tags"})) == []


def test_what_was_cut_must_begin_alike() -> None:
    """A text noted as cut must match at its beginning; without the note a cut is a difference."""
    assert facts(notes="some no…", truncated=frozenset({"notes"})) == []
    assert len(facts(notes="other…", truncated=frozenset({"notes"}))) == 1
    assert len(facts(notes="some no…")) == 1


def test_what_the_target_lacks_is_not_asked_for() -> None:
    """Content that the target noted as missing is not compared."""
    unsupported = frozenset({"status", "end", "params.lr"})
    assert (
        facts(
            status="",
            end=None,
            params={"n": 3, "flag": True, "api_key": "***", "ckpt_path": ""},
            unsupported=unsupported,
        )
        == []
    )


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


def test_a_difference_in_json() -> None:
    """The JSON of a difference is as the reference says."""
    difference = Difference(Verdict.DIFFERENT, "metrics.csv", "loss", 3, "0.1", "0.2")
    assert msgspec.to_builtins(difference) == {
        "verdict": "*",
        "file": "metrics.csv",
        "what": "loss",
        "step": 3,
        "expected": "0.1",
        "found": "0.2",
    }
