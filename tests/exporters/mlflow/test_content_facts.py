"""A run's identity, name, times, status, params, tags and notes in MLflow."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import RebuildNeededError, RunError, TargetRefusedError, UsageError
from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.mlflow.facts import Tag, UserTags, read_list_tag, read_names_tags, script_of
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from logger.sidecar import SessionEntry
from tests.deltas import delta_of, file_of, make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import CREATED_S as START

ROWS = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]


def test_start_and_end_are_those_of_the_run_to_the_millisecond(store: Store) -> None:
    """Start and end are the run's, not the export's."""
    store.export(make_model_run(start=START + 0.1234, end=START + 60.9876), ROWS)
    info = store.run().info
    assert (info.start_time, info.end_time, info.status) == (1775822400123, 1775822460988, "FINISHED")


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (Status.RUNNING, "RUNNING"),
        (Status.COMPLETED, "FINISHED"),
        (Status.FAILED, "FAILED"),
        (Status.INTERRUPTED, "KILLED"),
        (Status.KILLED, "KILLED"),
        (Status.UNKNOWN, "FINISHED"),
    ],
)
def test_a_status_is_worded_by_the_table(store: Store, status: Status, word: str) -> None:
    """Each status has one MLflow status, and the tag `bridge.status` appears only where it says more."""
    store.export(
        make_model_run(status=status, status_word=None, end=None if status is Status.RUNNING else START + 9), ROWS
    )
    run = store.run()
    says_more = status in (Status.INTERRUPTED, Status.UNKNOWN)
    assert (run.info.status, run.data.tags.get("bridge.status")) == (word, status.value if says_more else None)


def test_a_requeued_run_is_running_until_its_next_end(any_store: Store) -> None:
    """A requeue clears the end and moves the start, except through a server; the next end is right everywhere."""
    any_store.export(make_model_run(status=Status.KILLED), ROWS)
    running = make_model_run(status=Status.RUNNING, start=START - 9)
    any_store.export(running, [{"step": 2, "loss": 0.1}])
    info = any_store.run().info
    expected = (1775822400000, 1775826000000) if any_store.is_server else (1775822391000, None)
    assert (info.status, info.start_time, info.end_time) == ("RUNNING", *expected)
    assert any_store.stale(running) == []
    any_store.export(make_model_run(end=1775829600.0))
    assert (any_store.run().info.status, any_store.run().info.end_time) == ("FINISHED", 1775829600000)


def test_params_keep_their_text_and_names_that_mlflow_refuses_are_mapped(store: Store) -> None:
    """The first name keeps the clean key, and tags map the keys back."""
    run = make_model_run(params={"opt/lr": 0.1, "a b": None, "f(x)": True, "f[x]": 2, "f_x_": 3})
    applied = store.export(run, ROWS)
    assert store.run().data.params == {"opt/lr": "0.1", "a b": "None", "f_x_": "True", "f_x__2": "2", "f_x__3": "3"}
    assert read_names_tags(store.run().data.tags)["params"] == {
        "f(x)": "f_x_",
        "f[x]": "f_x__2",
        "f_x_": "f_x__3",
    }
    assert [notice.what for notice in applied.notices if notice.kind is NoticeKind.RENAMED] == [
        "param f(x)",
        "param f[x]",
        "param f_x_",
    ]
    held = store.read(run).params
    assert held == {"opt/lr": "0.1", "a b": "None", "f(x)": "True", "f[x]": "2", "f_x_": "3"}


@pytest.mark.parametrize(
    ("artifacts", "param", "notes"),
    [
        ("ended", "the artifact hparams.yaml or sidecar.json", "the artifact sidecar.json"),
        ("none", "hparams.yaml or sidecar.json in the run directory", "sidecar.json in the run directory"),
    ],
)
def test_what_is_too_long_is_cut_and_kept_in_full(
    store: Store, tmp_path: Path, artifacts: str, param: str, notes: str
) -> None:
    """Long params, notes and names are cut with a notice each, which says where they are in full.

    That is among the artifacts, unless none are sent.
    """
    facts: dict[str, Any] = {"notes": "# Notes\n" + "x" * 9000}
    hparams = {"prompt": "x" * 7000}
    files = {"hparams.yaml": yaml.safe_dump(hparams), "sidecar.json": json.dumps(facts | {"hparams": hparams})}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    run = make_model_run(
        tmp_path, params=hparams, name="n" * 400, files={name: file_of(tmp_path / name) for name in files}, **facts
    )
    applied = store.export(run, ROWS, content=ContentOptions(artifacts=artifacts))
    held = store.run()
    description = held.data.tags["mlflow.note.content"]
    assert (held.data.params["prompt"], len(held.info.run_name)) == ("x" * 6000, 250)
    assert (len(description), description[:8], description[-17:]) == (8000, "# Notes\n", "in sidecar.json.*")
    assert {notice.what: notice.detail for notice in applied.notices if notice.kind is NoticeKind.CUT} == {
        "param prompt": f"7000 characters; {param} has all",
        "notes": f"9008 characters; {notes} has all",
        "name": "the first 250 of 400 characters are kept; sidecar.json has all",
    }
    if artifacts != "none":
        assert {name: store.artifact(name).decode() for name in files} == files
    read = store.read(run)
    assert read.truncated == {"name", "notes", "params.prompt"}
    assert (read.params, run.notes.startswith(read.notes or "-")) == ({"prompt": "x" * 6000}, True)


def test_any_number_of_renamed_metrics_comes_back(any_store: Store) -> None:
    """Renamed metrics that need many tags are mapped back without any artifact, and a rebuild needs fewer for fewer."""
    count = 100 if any_store.is_server else 1000  # a server is asked for each metric's points
    names = [f"grad({hashlib.sha256(str(number).encode()).hexdigest()})" for number in range(count)]
    run, content = make_model_run(params={"f(x)": 1}), ContentOptions(artifacts="none")
    any_store.export(run, [{"step": 0, **dict.fromkeys(names, 1.0)}], content=content)
    any_store.export(make_model_run(params={"f(x)": 1}, notes="changed"), content=content)
    held = any_store.read(run, content)
    assert (held.names, held.params) == (frozenset(names), {"f(x)": "1"})
    tags = [key for key in any_store.run().data.tags if key.startswith(Tag.NAMES)]
    assert len(tags) > (1 if any_store.is_server else 10)
    any_store.rebuild(run, [delta_of(run, ROWS)], content)
    tags = [key for key in any_store.run().data.tags if key.startswith(Tag.NAMES)]
    assert len(tags) == 1


def test_names_that_somebody_changed_are_an_error(store: Store) -> None:
    """Names that cannot be read any more are no different points."""
    run = make_model_run(params={"f(x)": 1})
    store.export(run, ROWS)
    store.client.set_tag(store.run().info.run_id, f"{Tag.NAMES}0000", "x")
    with pytest.raises(TargetRefusedError, match="cannot be read"):
        store.read(run)


def test_names_that_cannot_be_read_cost_a_rebuild(store: Store) -> None:
    """A stop between the tags that hold the names costs a rebuild. New facts must not lose the names of old metrics."""
    store.export(make_model_run(), [{"step": 0, "f(x)": 1.0}])
    store.client.set_tag(store.run().info.run_id, f"{Tag.NAMES}0000", "x")
    with pytest.raises(RebuildNeededError, match="names"):
        store.export(make_model_run(notes="changed"))


def test_a_param_that_changed_is_replaced_where_that_can_be(any_store: Store) -> None:
    """A new param is added. A changed one is replaced in a database, and refused without a write through a server."""
    any_store.export(make_model_run(params={"lr": 0.1}), ROWS)
    any_store.export(make_model_run(params={"lr": 0.1, "new": 1}))
    assert any_store.run().data.params == {"lr": "0.1", "new": "1"}
    changed = make_model_run(params={"lr": 0.2, "new": 1}, notes="changed")
    if any_store.is_server:
        with pytest.raises(RebuildNeededError, match="lr"):
            any_store.export(changed)
    else:
        any_store.export(changed)
    lr, notes = ("0.1", None) if any_store.is_server else ("0.2", "changed")
    held = any_store.run().data
    assert (held.params, held.tags.get("mlflow.note.content")) == ({"lr": lr, "new": "1"}, notes)


def test_a_param_that_is_gone_needs_a_rebuild(store: Store) -> None:
    """A removed param is refused without a write, because MLflow cannot delete params."""
    store.export(make_model_run(params={"lr": 0.1, "depth": 3}), ROWS)
    with pytest.raises(RebuildNeededError, match="depth"):
        store.export(make_model_run(params={"lr": 0.1}))
    assert store.run().data.params == {"lr": "0.1", "depth": "3"}


def test_a_volatile_param_keeps_its_first_value_and_a_tag_has_the_newest(store: Store) -> None:
    """A new job id at a requeue makes no new run, and neither does a resume without a checkpoint path."""
    store.export(make_model_run(params={"lr": 0.1, "ckpt_path": "/a", "job_id": 17}), ROWS)
    run_id = store.run().info.run_id
    resumed = make_model_run(params={"lr": 0.1, "job_id": 18})
    assert store.stale(resumed) == ["bridge tags"]
    store.export(resumed)
    run = store.run()
    assert (run.info.run_id, run.data.params) == (run_id, {"lr": "0.1", "ckpt_path": "/a", "job_id": "17"})
    newest = {key: value for key, value in run.data.tags.items() if key.startswith("mlflow.bridge.newest.")}
    assert (newest, store.stale(resumed)) == ({"mlflow.bridge.newest.job_id": "18"}, [])


def test_tags_follow_one_rule_and_no_two_become_one(store: Store) -> None:
    """`key:value` splits, values of one key are joined, a word is true; taken keys become others, with notices."""
    tags = (
        *("project:x", "team:a", "team:b", "baseline", "team", "two words", "a@b", "a#b"),
        *("mlflow.user:me", "tag.mlflow.user:2", "bridge.uid:no", "w" * 300),
    )
    run = make_model_run(tags=tags)
    applied = store.export(run, ROWS)
    held = store.run().data.tags
    (long,) = (key for key in held if key.startswith("w" * 200))
    people = {key: value for key, value in held.items() if not key.startswith(("mlflow.", "bridge.")) and key != long}
    assert people == {
        "project": "x",
        "team": "a, b",
        "baseline": "true",
        "two words": "true",
        "a_b": "true",
        "a_b_2": "true",
        "tag.mlflow.user": "me",
        "tag.mlflow.user_2": "2",
        "tag.bridge.uid": "no",
    }
    assert [(notice.kind, notice.what) for notice in applied.notices] == [
        (NoticeKind.RENAMED, "tag mlflow.user"),
        (NoticeKind.RENAMED, "tag tag.mlflow.user"),
        (NoticeKind.RENAMED, "tag bridge.uid"),
        (NoticeKind.RENAMED, "tag a@b"),
        (NoticeKind.RENAMED, "tag a#b"),
        (NoticeKind.RENAMED, f"tag {'w' * 100}..."),
        (NoticeKind.LEFT_OUT, "tag team"),
    ]
    assert (json.loads(held["mlflow.bridge.tags"]), held["mlflow.bridge.uid"]) == (list(tags), "uid-first")
    assert store.read(run).tags == tags


def test_user_host_command_and_commit_are_those_of_the_training(store: Store) -> None:
    """User, host, command and commit come from the newest session that has them."""
    sessions = (
        SessionEntry(user="ada", host="node1", command="train.py --lr 0.1", git_commit="abc123", slurm={"job_id": "7"}),
        SessionEntry(host="node2", slurm={"job_id": "8", "partition": "gpu"}, restart_count=3),
        SessionEntry(),
    )
    store.export(make_model_run(sessions=sessions), ROWS)
    tags = store.run().data.tags
    natural = {
        key: value
        for key, value in tags.items()
        if key.startswith("mlflow.") and not key.startswith("mlflow.bridge.") and key != "mlflow.runName"
    }
    assert natural == {
        "mlflow.user": "ada",
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "abc123",
    }
    assert {key: value for key, value in tags.items() if key.startswith("bridge.")} == {
        "bridge.command": "train.py --lr 0.1",
        "bridge.host": "node2",
        "bridge.restarts": "3",
        "bridge.slurm": "job_id=8, partition=gpu",
    }


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("train.py preempted --seed 5", "train.py"),
        ("python -m pkg.train --config a.py", "pkg.train"),
        ("/usr/bin/python3 'my code/train.py' --data /a/b", "my code/train.py"),
        ("torchrun --nproc 2 src/train.py", "src/train.py"),
        ("python -m torch.distributed.run src/train.py", "src/train.py"),
        ("mytool fit", "mytool"),
        ("an 'open quote", "an"),
    ],
)
def test_the_source_is_the_script_or_the_module(command: str, script: str) -> None:
    """The source name has no arguments, because MLflow shows only what follows the last slash."""
    assert script_of(command) == script


def test_what_people_edit_stays_and_is_named(store: Store) -> None:
    """Name, description and tags edited in the UI survive changes of the same fields in the run."""
    run = make_model_run(name="first", notes="mine", tags=("project:x", "keep:1", "gone:1"))
    store.export(run, ROWS)
    run_id = store.run().info.run_id
    store.client.update_run(run_id, name="best of all")
    store.client.set_tag(run_id, "mlflow.note.content", "theirs")
    store.client.set_tag(run_id, "project", "theirs")
    store.client.set_tag(run_id, "own", "theirs")
    store.client.delete_tag(run_id, "gone")
    changed = make_model_run(name="renamed", notes="newer", tags=("project:y", "keep:2", "gone:2", "own:mine"))
    assert sorted(store.known(changed).edited) == ["name", "notes", "tags.gone", "tags.project"]
    store.export(changed, [{"step": 9, "loss": 0.0}])
    held = store.run()
    tags = held.data.tags
    assert (held.info.run_name, tags["mlflow.note.content"]) == ("best of all", "theirs")
    assert [tags.get(key) for key in ("project", "own", "keep", "gone")] == ["theirs", "theirs", "2", None]
    assert store.stale(changed) == []


def test_status_and_end_are_no_edits(any_store: Store) -> None:
    """MLflow's pages cannot edit status and end. Where a program did, the next export says again how the run ended."""
    run = make_model_run()
    any_store.export(run, ROWS)
    before = any_store.run().info
    any_store.client.set_terminated(before.run_id, "FAILED", before.end_time + 5)
    assert (any_store.known(run).edited, any_store.stale(run)) == ((), ["status", "end"])
    any_store.export(run)
    after = any_store.run().info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)
    assert any_store.stale(run) == []


def test_an_estimated_end_is_set_right_as_it_was_sent(store: Store, tmp_path: Path) -> None:
    """A directory without a sidecar was copied, so that its files look new: its end in MLflow stays the first one."""
    metrics = tmp_path / "runs" / "version_0" / "metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("step,loss\n0,1.0\n1,0.5\n")
    os.utime(metrics, (START, START))
    export_runs([metrics.parent], store.exporter())
    before = store.run().info
    assert store.run().data.tags["bridge.time"] == "estimated"
    store.client.set_terminated(before.run_id, "FAILED", before.end_time + 5)
    os.utime(metrics)
    (line,) = export_runs([metrics.parent], store.exporter()).runs
    after = store.run().info
    assert (line.reason, after.status, after.end_time) == ("changed: status, end", "FINISHED", before.end_time)


def test_a_deleted_experiment_is_an_error(store: Store) -> None:
    """In a deleted experiment each run fails with the same error and its remedies, and nothing is written."""
    run = make_model_run()
    store.export(run, ROWS)
    experiment = store.client.get_experiment_by_name("trials")
    assert experiment is not None
    store.client.delete_experiment(experiment.experiment_id)
    for one in (run, make_model_run(identity="never seen")):
        error = store.known(one).error
        assert str(error) == "The MLflow experiment 'trials' was deleted."
        assert isinstance(error, TargetRefusedError)
        assert "mlflow experiments restore" in str(error.hint)


def test_placeholders_choose_the_experiment_and_the_run_stays_there(store: Store) -> None:
    """A placeholder chooses the experiment once, and a later tag does not move the run."""
    store.experiment = "{tags.project}/{hparams.model.name}/{parent}"
    run = make_model_run(Path("/data/sweeps/first"), tags=("project:vision",), params={"model.name": "resnet"})
    store.export(run, ROWS)
    moved = make_model_run(Path("/data/sweeps/first"), tags=("project:audio",), params={"model.name": "resnet"})
    assert store.known(moved).exists
    store.export(moved)
    assert [run.data.tags["project"] for run in store.runs(experiment="vision/resnet/sweeps")] == ["audio"]


def test_a_run_without_a_placeholders_value_is_an_error(store: Store) -> None:
    """A run without the placeholder's value fails alone, or goes to --experiment-default."""
    store.experiment = "{tags.project}"
    with store.exporter() as exporter:
        known = exporter.cursors([make_model_run(), make_model_run(identity="other", tags=("project:x",))])
    assert isinstance(known["uid-first"].error, RunError)
    assert "{tags.project}" in str(known["uid-first"].error)
    assert known["other"].error is None
    store.options = {"experiment_default": "unsorted"}
    store.export(make_model_run(), ROWS)
    assert len(store.runs(experiment="unsorted")) == 1


def test_a_placeholder_that_does_not_exist_is_wrong_usage() -> None:
    """An unknown placeholder is wrong usage that lists the known ones."""
    with pytest.raises(UsageError, match=r"\{user\}") as caught:
        MlflowExporter("sqlite:////tmp/x.db", experiment="{user}")
    assert caught.value.hint == "There are {tags.NAME}, {hparams.NAME}, {parent}."


def test_an_experiment_that_we_make_in_a_file_keeps_its_artifacts_beside_it(store: Store, tmp_path: Path) -> None:
    """A new experiment of a SQLite file stores its artifacts beside the file."""
    store.export(make_model_run(), ROWS)
    assert store.run().info.artifact_uri.startswith((tmp_path / "mlartifacts" / "trials").as_uri())


def test_a_long_experiment_name_is_cut_to_what_mlflow_takes(store: Store) -> None:
    """An experiment name is cut to 256 characters with a notice, and found again."""
    store.experiment = "e" * 300
    applied = store.export(make_model_run(), ROWS)
    assert [(notice.kind, notice.what[:12]) for notice in applied.notices] == [(NoticeKind.CUT, "experiment e")]
    assert store.known(make_model_run()).exists


def test_secrets_are_masked_in_params_tags_and_commands(store: Store) -> None:
    """Secrets are masked by their keys, nested ones too, and each is counted."""
    run = make_model_run(
        params={"db.password": "p1", "opts": '[{"api_key": "p2"}]', "lr": 0.1},
        tags=("api_key:p3", "project:x"),
        sessions=(
            SessionEntry(
                command="train.py --secret-file=p4 --auth_token p5 model.private_key=p6 --lr 1",
                slurm={"job_id": "7", "api-key": "p7"},
            ),
        ),
    )
    applied = store.export(run, ROWS)
    held = store.run()
    assert held.data.params == {"db.password": "***", "opts": '[{"api_key": "***"}]', "lr": "0.1"}
    assert held.data.tags["api_key"] == "***"
    assert json.loads(held.data.tags["mlflow.bridge.tags"]) == ["api_key:***", "project:x"]
    command = "train.py --secret-file=*** --auth_token *** model.private_key=*** --lr 1"
    assert (held.data.tags["mlflow.source.name"], held.data.tags["bridge.command"]) == ("train.py", command)
    assert [notice.what for notice in applied.notices if notice.kind is NoticeKind.REDACTED] == [
        "param db.password",
        "param opts",
        "tag api_key",
        "tag bridge.command",
        "tag bridge.slurm",
    ]
    assert held.data.tags["bridge.slurm"] == "job_id=7, api-key=***"


def test_other_peoples_runs_are_never_looked_at(store: Store) -> None:
    """A run with our run's name but without our tags stays untouched."""
    experiment = store.client.create_experiment("trials")
    theirs = store.client.create_run(experiment, run_name="first", tags={"a": "b"})
    store.export(make_model_run(), ROWS)
    assert len(store.runs()) == 2
    assert store.client.get_run(theirs.info.run_id).data.tags == {"a": "b", "mlflow.runName": "first"}


# ---------------------------------------------------------------------------------------------------------------------
# Beyond the limits of MLflow or a database

ODD = [{"step": 0, "a@b": 1.0}]


def test_nul_characters_are_replaced(uri: str, tmp_path: Path) -> None:
    """NUL characters are replaced for every database, because PostgreSQL has none, and verify knows."""
    store = Store(uri)
    store.client.create_experiment("trials", artifact_location=tmp_path.as_uri())
    run = make_model_run(params={"p": "a\0b"}, tags=("k:a\0b",), notes="a\0b", name="a\0b")
    applied = store.export(run, ODD)
    assert (NoticeKind.CUT, "param p") in [(notice.kind, notice.what) for notice in applied.notices]
    held = store.run()
    assert (held.data.params["p"], held.data.tags["k"], held.info.run_name) == ("a\ufffdb", "a\ufffdb", "a\ufffdb")
    assert {"params.p", "notes", "name", "tags"} <= store.read(run).unsupported
    assert store.stale(run) == []


def test_long_keys_of_any_script_arrive(store: Store) -> None:
    """Keys in any script fit MLflow's limits, stay apart, and are read back whole, also if no tag can list them."""
    names = [
        "größe/学習率",
        "x" * 300,
        "x" * 299 + "y",
        "🚀 rate",
        "a=b,c;d",
        "100%",
        *("y" * 300 + f"@{n}" for n in range(9)),
    ]
    run = make_model_run(params={name: number for number, name in enumerate(names)})
    store.export(run, [{"step": 0, **{name: float(number) for number, name in enumerate(names)}}])
    assert store.stale(run) == []
    store.export(run)
    held = store.read(run)
    assert sorted(held.series) == sorted(names)
    assert held.params == {name: str(number) for number, name in enumerate(names)}


MANY = tuple(f"tag{number:04}:{'z' * 280}" for number in range(14))
"""Tags whose list nearly fills one tag of MLflow's."""


def tags_of(store: Store) -> dict[str, str]:
    """Return the tags of the one run without the cursor."""
    return {key: value for key, value in store.run().data.tags.items() if key != "mlflow.bridge.cursor"}


def test_changed_and_removed_tags_follow_the_run(any_store: Store) -> None:
    """Changed and removed tags follow the run, and tags that people set or removed stay theirs."""
    store = any_store
    store.export(make_model_run(tags=MANY), ROWS)
    run_id = store.run().info.run_id
    store.client.set_tag(run_id, "tag0013", "theirs")
    store.client.delete_tag(run_id, "tag0012")
    for tags in (("new:1", *MANY[:9], "tag0009:CHANGED", *MANY[11:]), MANY[:2]):
        store.export(make_model_run(tags=tags))
        clean = replace(store, experiment=f"{store.experiment} {len(tags)}")
        clean.export(make_model_run(tags=tags), ROWS)
        expected = {key: value for key, value in tags_of(clean).items() if key != "tag0012"} | {"tag0013": "theirs"}
        assert tags_of(store) == expected
        if len(tags) > 2:
            assert sorted(store.known(make_model_run(tags=tags)).edited) == ["tags.tag0012", "tags.tag0013"]


TEXTS = st.lists(st.one_of(st.text(max_size=20), st.text("ab:@#.", max_size=4)), max_size=30, unique=True)


@given(tags=TEXTS)
@settings(max_examples=100, deadline=None)
def test_each_tag_has_its_own_key_or_shares_that_of_its_name(tags: list[str]) -> None:
    """However names are cleaned, only tags of one name share a key."""
    made = UserTags.of(tags)
    assert len(set(made.keys.values())) == len(made.keys)
    assert {made.key(tag) for tag in tags} == set(made.values)


def test_tags_beyond_one_list_are_left_out_with_a_notice(store: Store) -> None:
    """Only tags that fit into the list of our own tags are sent, so none can be taken for a user's."""
    run = make_model_run(tags=tuple(f"k{number}:{'v' * 400}" for number in range(40)))
    applied = store.export(run, ROWS)
    held = store.run().data.tags
    kept = read_list_tag(held)
    assert kept == list(run.tags[: len(kept)])
    assert len(held["mlflow.bridge.tags"]) <= 5000
    assert [key in held for key in ("k0", "k11", "k12", "k39")] == [True, len(kept) > 11, len(kept) > 12, False]
    assert [(notice.kind, notice.what, notice.count) for notice in applied.notices] == [
        (NoticeKind.LEFT_OUT, "tags", 40 - len(kept)),
    ]
    assert (store.stale(run), store.known(run).edited) == ([], ())
    assert "tags" in store.read(run).unsupported
