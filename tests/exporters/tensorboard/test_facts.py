"""Hyperparameters, status, notes and tags are typed, escaped and read back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.facts import metric_tags
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from tests.deltas import make_block, make_delta, make_model_run, notices_of
from tests.exporters.tensorboard.event_files import events, file_of
from tests.run_dirs import CREATED_S, make_run

if TYPE_CHECKING:
    from bridge.exporters.contract import Applied, TargetContent

SHAPE = ContentOptions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "abc"


def export(folder: Path, *, steps: tuple[int, ...] = (0,), metric: str = "loss", **fields: Any) -> Applied:
    """Export a run with these facts and one metric."""
    run = make_model_run(Path("/runs/abc"), **fields)
    delta = make_delta(run, [make_block(steps, {metric: [1.0] * len(steps)})])
    return TensorBoardExporter(folder.parent).open(run, SHAPE).apply(delta)


def held(folder: Path) -> TargetContent:
    return TensorBoardExporter(folder.parent).open(make_model_run(Path("/runs/abc")), SHAPE).read()


def sessions(folder: Path) -> tuple[list[Any], list[Any]]:
    """Return the session starts and ends in the facts' file, as the HPARAMS page parses them."""
    from tensorboard.plugins.hparams import metadata

    found: dict[str, list[Any]] = {metadata.SESSION_START_INFO_TAG: [], metadata.SESSION_END_INFO_TAG: []}
    parsers = (metadata.parse_session_start_info_plugin_data, metadata.parse_session_end_info_plugin_data)
    for event in events(file_of(folder, "facts")):
        for value in event.summary.value:
            for tag, parse in zip(found, parsers, strict=True):
                if value.tag == tag:
                    found[tag].append(parse(value.metadata.plugin_data.content))
    starts, ends = found.values()
    return starts, ends


def texts(folder: Path) -> dict[str, str]:
    """Return the texts in the facts' file, by tag."""
    return {
        value.tag: value.tensor.string_val[0].decode()
        for event in events(file_of(folder, "facts"))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


def test_a_session_is_typed(folder: Path) -> None:
    """Numbers, booleans and strings keep their types, None is left out, and the group is the run's folder."""
    params = {"lr": 0.1, "depth": 3, "flag": True, "name": "big", "none": None}
    export(folder, params=params)
    (start,), _ = sessions(folder)
    assert start.group_name == "abc"
    assert start.start_time_secs == CREATED_S
    assert {
        key: (value.WhichOneof("kind"), getattr(value, value.WhichOneof("kind")))
        for key, value in start.hparams.items()
    } == {
        "lr": ("number_value", 0.1),
        "depth": ("number_value", 3.0),
        "flag": ("bool_value", True),
        "name": ("string_value", "big"),
    }
    assert held(folder).params == {"lr": 0.1, "depth": 3.0, "flag": True, "name": "big"}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (Status.RUNNING, ""),
        (Status.COMPLETED, "SUCCESS"),
        (Status.FAILED, "FAILURE"),
        (Status.INTERRUPTED, "FAILURE"),
        (Status.KILLED, "FAILURE"),
        (Status.UNKNOWN, ""),
    ],
)
def test_the_end_of_a_session(folder: Path, status: Status, word: str) -> None:
    """A session end is written only after the run's end, because TensorBoard keeps the first that it reads."""
    export(folder, status=status)
    starts, ends = sessions(folder)
    assert len(starts) == 1
    assert len(ends) == (1 if word else 0)
    found = held(folder)
    assert found.status == word
    assert found.end == (CREATED_S + 3600 if word else None)


def test_numbers_that_would_break_the_page(folder: Path) -> None:
    """Numbers that JSON cannot hold are left out of the session and shown in TEXT, with notices."""
    done = export(folder, params={"nan": math.nan, "inf": math.inf, "big": 2**60 + 1, "huge": 10**400, "lr": 0.1})
    assert {(notice.kind, notice.what) for notice in done.notices} == {
        (NoticeKind.LEFT_OUT, "nan"),
        (NoticeKind.LEFT_OUT, "inf"),
        (NoticeKind.CUT, "big"),
        (NoticeKind.LEFT_OUT, "huge"),
    }
    assert held(folder).params == {"big": float(2**60), "lr": 0.1}
    assert held(folder).unsupported == {"params.nan", "params.inf", "params.big", "params.huge"}
    assert f"| big | {2**60 + 1} |" in texts(folder)["run/hparams"]


@pytest.mark.parametrize(("step", "session"), [(2**31, 0), (-(2**31) - 1, 0), (2**31 - 1, 1), (-(2**31), 1)])
def test_steps_beyond_32_bits_leave_no_session(folder: Path, step: int, session: int) -> None:
    """A run with such a step gets no session and a notice, because HPARAMS would fail for all runs."""
    done = export(folder, steps=(0, step), params={"lr": 0.1}, notes="n")
    starts, ends = sessions(folder)
    assert (len(starts), len(ends)) == (session, session)
    expected = [] if session else [(NoticeKind.LEFT_OUT, "hparams")]
    assert [(notice.kind, notice.what) for notice in done.notices] == expected
    assert set(texts(folder)) == {"run/notes", "run/hparams"}
    assert ({"params", "status", "end"} <= held(folder).unsupported) is not bool(session)


def test_a_session_that_went_comes_back_only_with_a_rebuild(folder: Path) -> None:
    """A step beyond 32 bits stays in the file, so later exports omit the session too."""
    run = make_model_run(Path("/runs/abc"))
    target = TensorBoardExporter(folder.parent).open(run, SHAPE)
    first = make_delta(run, [make_block([2**31], {"loss": [1.0]})])
    target.apply(first)
    target.apply(make_delta(run, [make_block([1], {"acc": [1.0]}, first_row=1)], before=first.after))
    assert sessions(folder) == ([], [])
    target.rebuild([make_delta(run, [make_block([1], {"loss": [1.0]})])])
    assert len(sessions(folder)[0]) == 1


def test_secrets_are_notices(folder: Path) -> None:
    """Each value whose key matches --redact is counted, also in a text and in a tag."""
    params = {"db.Password": "hunter2", "api-key": 1, "opts": '[{"secret": "hunter2"}]', "lr": 0.1}
    done = export(folder, params=params, tags=("password:hunter2", "a:b"))
    assert [notice.what for notice in done.notices] == ["db.Password", "api-key", "opts", "tag password"]
    assert {notice.kind for notice in done.notices} == {NoticeKind.REDACTED}


def test_texts_show_what_they_say(folder: Path) -> None:
    """Markdown in hyperparameters and tags is escaped; notes are Markdown."""
    from tensorboard.plugin_util import markdown_to_safe_html

    export(
        folder,
        params={"a|b": "x*y*_z_`", "html": "<b>&amp;</b>", "lines": "one\ntwo", "list": "- 1. #"},
        tags=("a-b_c", "<i>", "1. x"),
        notes="# Title",
    )
    found = texts(folder)
    table = markdown_to_safe_html(found["run/hparams"])
    assert "<td>a|b</td>\n<td>x*y*_z_`</td>" in table
    assert "<td>html</td>\n<td>&lt;b&gt;&amp;amp;&lt;/b&gt;</td>" in table
    assert "<td>lines</td>\n<td>one<br>two</td>" in table
    assert "<td>list</td>\n<td>- 1. #</td>" in table
    assert markdown_to_safe_html(found["run/tags"]) == (
        "<ul>\n<li>a-b_c</li>\n<li>&lt;i&gt;</li>\n<li>1. x</li>\n</ul>"
    )
    assert markdown_to_safe_html(found["run/notes"]) == "<h1>Title</h1>"


def test_text_cells_are_no_texts(tmp_path: Path) -> None:
    """A text cell of metrics.csv is a notice, and is in no event file."""
    path = make_run(tmp_path / "runs" / "abc", [{"step": 0, "loss": 1.0, "phase": "warm-up"}])
    (line,) = export_runs([path], TensorBoardExporter(tmp_path / "logs")).runs
    assert [(notice.kind, notice.what) for notice in notices_of(line)] == [(NoticeKind.TEXT_CELL, "phase")]
    data = b"".join(file.read_bytes() for file in (tmp_path / "logs").rglob("*tfevents*"))
    assert (b"loss" in data, b"warm-up" in data) == (True, False)


def test_a_metric_with_the_name_of_a_fact(folder: Path) -> None:
    """A metric keeps its name, and the text of that name gets a suffix, with a notice, and is read back."""
    done = export(folder, metric="run/notes", notes="hello")
    assert [(notice.kind, notice.what) for notice in done.notices] == [(NoticeKind.RENAMED, "run/notes")]
    assert texts(folder) == {"run/notes (text)": "hello"}
    assert held(folder).notes == "hello"
    assert held(folder).series["run/notes"].value.tolist() == [1.0]


def test_tags_of_metrics() -> None:
    """A metric's tag is its name, except for empty names, lone surrogates, the tags of HPARAMS and collisions."""
    names = ("val/acc@5 %", "", "\udcff", "_hparams_/x", "a", "b", "b (2)")
    tags = ("val/acc@5 %", "(no name)", "?", "metric _hparams_/x", "b", "b (2)", "b (2) (2)")
    assert metric_tags(names, (("a", "b"),)) == dict(zip(names, tags, strict=True))
