"""Hyperparameters, status, notes and tags are typed, escaped and read back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.facts import metric_tags
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from tests.deltas import make_block, make_delta, make_model_run
from tests.exporters.tensorboard.event_files import events, file_of
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.contract import Applied, TargetContent

SHAPE = ContentOptions()


def export(
    tmp_path: Path, *, steps: list[int] | None = None, content: ContentOptions = SHAPE, **fields: Any
) -> Applied:
    run = make_model_run(tmp_path / "runs" / "abc", **fields)
    block = make_block(steps or [0], {"loss": [1.0] * len(steps or [0])})
    return TensorBoardExporter(tmp_path / "logs").open(run, content).apply(make_delta(run, [block]))


def held(tmp_path: Path) -> TargetContent:
    run = make_model_run(tmp_path / "runs" / "abc")
    return TensorBoardExporter(tmp_path / "logs").open(run, SHAPE).read()


def sessions(tmp_path: Path) -> tuple[list[Any], list[Any]]:
    """Return the session starts and ends in the facts' file, as the HPARAMS page parses them."""
    from tensorboard.plugins.hparams import metadata

    starts, ends = [], []
    for event in events(file_of(tmp_path / "logs" / "abc", "facts")):
        for value in event.summary.value:
            content = value.metadata.plugin_data.content
            if value.tag == metadata.SESSION_START_INFO_TAG:
                starts.append(metadata.parse_session_start_info_plugin_data(content))
            elif value.tag == metadata.SESSION_END_INFO_TAG:
                ends.append(metadata.parse_session_end_info_plugin_data(content))
    return starts, ends


def texts(tmp_path: Path) -> dict[str, str]:
    """Return the texts in the facts' file, by tag."""
    return {
        value.tag: value.tensor.string_val[0].decode()
        for event in events(file_of(tmp_path / "logs" / "abc", "facts"))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


def test_a_session_is_typed(tmp_path: Path) -> None:
    """Numbers, booleans and strings keep their types, None is left out, and the group is the run's folder."""
    params = {"lr": 0.1, "depth": 3, "flag": True, "name": "big", "none": None}
    export(tmp_path, params=params)
    (start,), _ = sessions(tmp_path)
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
    assert held(tmp_path).params == {"lr": 0.1, "depth": 3.0, "flag": True, "name": "big"}


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
def test_the_end_of_a_session(tmp_path: Path, status: Status, word: str) -> None:
    """A session end is written only after the run's end, because TensorBoard keeps the first that it reads."""
    export(tmp_path, status=status)
    starts, ends = sessions(tmp_path)
    assert len(starts) == 1
    assert len(ends) == (1 if word else 0)
    found = held(tmp_path)
    assert found.status == word
    assert found.end == (CREATED_S + 3600 if word else None)


def test_numbers_that_would_break_the_page(tmp_path: Path) -> None:
    """Numbers that JSON cannot hold are left out of the session and shown in TEXT, with notices."""
    done = export(tmp_path, params={"nan": math.nan, "inf": math.inf, "big": 2**60 + 1, "huge": 10**400, "lr": 0.1})
    assert {(notice.kind, notice.what) for notice in done.notices} == {
        (NoticeKind.LEFT_OUT, "nan"),
        (NoticeKind.LEFT_OUT, "inf"),
        (NoticeKind.CUT, "big"),
        (NoticeKind.LEFT_OUT, "huge"),
    }
    assert held(tmp_path).params == {"big": float(2**60), "lr": 0.1}
    assert held(tmp_path).unsupported == {"params.nan", "params.inf", "params.big", "params.huge"}
    assert f"| big | {2**60 + 1} |" in texts(tmp_path)["run/hparams"]


@pytest.mark.parametrize(("step", "session"), [(2**31, 0), (-(2**31) - 1, 0), (2**31 - 1, 1), (-(2**31), 1)])
def test_steps_beyond_32_bits_leave_no_session(tmp_path: Path, step: int, session: int) -> None:
    """A run with such a step gets no session and a notice, because HPARAMS would fail for all runs."""
    done = export(tmp_path, steps=[0, step], params={"lr": 0.1}, notes="n")
    starts, ends = sessions(tmp_path)
    assert (len(starts), len(ends)) == (session, session)
    expected = [] if session else [(NoticeKind.LEFT_OUT, "hparams")]
    assert [(notice.kind, notice.what) for notice in done.notices] == expected
    assert set(texts(tmp_path)) == {"run/notes", "run/hparams"}
    assert ({"params", "status", "end"} <= held(tmp_path).unsupported) is not bool(session)


def test_a_session_that_went_comes_back_only_with_a_rebuild(tmp_path: Path) -> None:
    """A step beyond 32 bits stays in the file, so later exports omit the session too."""
    run = make_model_run(tmp_path / "runs" / "abc", params={"lr": 0.1})
    exporter = TensorBoardExporter(tmp_path / "logs")
    target = exporter.open(run, SHAPE)
    first = make_delta(run, [make_block([2**31], {"loss": [1.0]})])
    target.apply(first)
    second = make_delta(run, [make_block([2**31 + 1], {"acc": [1.0]}, first_row=1)], before=first.after)
    target.apply(second)
    assert sessions(tmp_path) == ([], [])
    target.rebuild([make_delta(run, [make_block([1], {"loss": [1.0]})])])
    assert len(sessions(tmp_path)[0]) == 1


def test_secrets_are_masked(tmp_path: Path) -> None:
    """A value whose key matches --redact is in no file, not even nested in a text, and is counted."""
    params = {"db.Password": "hunter2", "api-key": 1, "opts": '[{"secret": "hunter2"}]', "lr": 0.1}
    done = export(tmp_path, params=params, tags=("password:hunter2", "a:b"))
    assert [(notice.kind, notice.what) for notice in done.notices] == [
        (NoticeKind.REDACTED, "db.Password"),
        (NoticeKind.REDACTED, "api-key"),
        (NoticeKind.REDACTED, "opts"),
        (NoticeKind.REDACTED, "tag password"),
    ]
    found = held(tmp_path)
    assert found.params == {"db.Password": "***", "api-key": "***", "opts": '[{"secret": "***"}]', "lr": 0.1}
    assert (found.tags, found.unsupported) == (("password:***", "a:b"), frozenset())
    folder = tmp_path / "logs" / "abc"
    assert all(b"hunter2" not in path.read_bytes() for path in folder.iterdir())


def test_texts_show_what_they_say(tmp_path: Path) -> None:
    """Markdown in hyperparameters and tags is escaped; notes are Markdown."""
    from tensorboard.plugin_util import markdown_to_safe_html

    export(
        tmp_path,
        params={"a|b": "x*y*_z_`", "html": "<b>&amp;</b>", "lines": "one\ntwo", "list": "- 1. #"},
        tags=("a-b_c", "<i>", "1. x"),
        notes="# Title",
    )
    found = texts(tmp_path)
    table = markdown_to_safe_html(found["run/hparams"])
    assert "<td>a|b</td>\n<td>x*y*_z_`</td>" in table
    assert "<td>html</td>\n<td>&lt;b&gt;&amp;amp;&lt;/b&gt;</td>" in table
    assert "<td>lines</td>\n<td>one<br>two</td>" in table
    assert "<td>list</td>\n<td>- 1. #</td>" in table
    assert markdown_to_safe_html(found["run/tags"]) == (
        "<ul>\n<li>a-b_c</li>\n<li>&lt;i&gt;</li>\n<li>1. x</li>\n</ul>"
    )
    assert markdown_to_safe_html(found["run/notes"]) == "<h1>Title</h1>"


def test_a_metric_with_the_name_of_a_fact(tmp_path: Path) -> None:
    """A metric keeps its name, and the text of that name gets a suffix and is read back."""
    run = make_model_run(tmp_path / "runs" / "abc", notes="hello")
    block = make_block([0], {"run/notes": [1.0]})
    TensorBoardExporter(tmp_path / "logs").open(run, SHAPE).apply(make_delta(run, [block]))
    assert texts(tmp_path) == {"run/notes (text)": "hello"}
    assert held(tmp_path).notes == "hello"
    assert held(tmp_path).series["run/notes"].value.tolist() == [1.0]


def test_tags_of_metrics() -> None:
    """A metric's tag is its name, except for empty names, lone surrogates, plugin names and collisions."""
    names = ["val/acc@5 %", "", "\udcff", "_hparams_/x", "a", "b", "b (2)"]
    assert metric_tags(tuple(names), (("a", "b"),)) == {
        "val/acc@5 %": "val/acc@5 %",
        "": "(no name)",
        "\udcff": "?",
        "_hparams_/x": "metric _hparams_/x",
        "a": "b",
        "b": "b (2)",
        "b (2)": "b (2) (2)",
    }
