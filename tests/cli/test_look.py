"""`bridge ls`, `show`, `best` and `scan`, as a person types them."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.calling import call, on_a_terminal
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make three runs (good, poor and dead) in the working directory."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for name, acc, lr, day in (("good", 0.9, 0.1, 9), ("poor", 0.4, 0.5, 10)):
        run = make_run(
            place / "runs" / name,
            created_at=f"2026-04-{day:02d}T12:00:00+00:00",
            hparams={"lr": lr, "opt": "adam"},
            summary={"val/acc": acc - 0.1, "epoch": 9},
            tags=["sweep:1"],
        )
        write_stats(run, last=acc - 0.1, max=acc, max_step=7, min=0, count=10)
    rows = [{"step": 9, "val/acc": 1.0}]
    dead = make_run(place / "runs" / "dead", rows, status="running", hparams={"lr": 0.1}, summary={"val/acc": 1.0})
    write_stats(dead, last=1.0, max=1.0)
    for name in ("heartbeat", "metrics.csv"):
        os.utime(dead / name, (1775826000, 1775826000))
    return place


def write_stats(run: Path, **stats: float) -> None:
    (run / "summary.json").write_text(json.dumps({"rows": 10, "metrics": {"val/acc": stats}}))


def lines(text: str) -> list[str]:
    """Return the nonempty lines of a table without blanks and rules."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip(" ─")]


def test_ls() -> None:
    """`ls` lists the newest run first with its status, results and distinguishing params; the count goes to stderr."""
    code, out, err = call("ls", "runs")
    assert (code, err) == (0, "3 runs.\n")
    assert lines(out) == [
        "name status start duration val/acc lr opt tags",
        "dead killed 2026-04-10 12:00 1h 00m 1 0.1",
        "poor completed 2026-04-10 12:00 1h 00m 0.3 0.5 adam sweep:1",
        "good completed 2026-04-09 12:00 1d 1h 0.8 0.1 adam sweep:1",
    ]


def test_ls_of_the_working_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RUNS, `ls` lists the working directory; overlapping RUNS list each run once; one run is no plural."""
    monkeypatch.chdir(here / "runs")
    assert call("ls", "-q")[1] == call("ls", "-q", ".", "good", here / "runs")[1] != ""
    assert call("ls", "good")[2] == "1 run.\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ls runs --where 'val/acc > 0.5 and hparams.lr < 0.5'", ["dead", "good"]),
        ("ls runs --tag sweep:* -n 1", ["poor"]),
        ("ls runs --status completed --sort val/acc", ["good", "poor"]),
        ("ls runs --status completed --sort hparams.lr", ["good", "poor"]),
        ("ls runs --sort val/acc.max", ["dead", "good", "poor"]),
        ("ls runs --sort val/acc.max --reverse", ["poor", "good", "dead"]),
        ("ls runs --reverse", ["good", "poor", "dead"]),
        ("ls runs --dead", ["dead"]),
        ("ls runs --alive", []),
        ("ls runs --run-id *oo*", ["poor", "good"]),
        ("ls runs --top 1 val/acc:max", ["good"]),
        ("ls runs --since 2026-04-10T13:00:01Z --where 'status != killed'", ["poor", "good"]),
        ("best val/acc runs", ["good", "poor"]),
        ("best val/acc runs -n 1", ["good"]),
        ("best val/acc runs --last", ["good", "poor"]),
        ("best val/acc runs --min --last", ["poor", "good"]),
        ("best val/acc:min runs --last", ["poor", "good"]),
        ("best val/acc:max runs --last", ["good", "poor"]),
        ("best val/acc runs --tag sweep:1 --where 'hparams.lr > 0.2'", ["poor"]),
        ("best val/acc runs --status killed", ["dead"]),
    ],
)
def test_options_select_and_order(line: str, found: list[str]) -> None:
    """Selection options choose runs, others order and limit them, and --json prints every field."""
    code, out, _ = call(*shlex.split(line), "--json")
    told = json.loads(out)
    assert (code, told["version"], [run["run_id"] for run in told["runs"]]) == (0, 1, found)


def test_ls_columns() -> None:
    """--columns takes fields, metrics and hyperparameters; an unknown one is an error with the nearest name."""
    code, out, err = call("ls", "runs", "--columns", "run_id,val/acc.max,hparams.lrr,max.val/acc", "--run-id", "good")
    assert lines(out) == ["run_id val/acc.max hparams.lrr val/acc.max", "good 0.9 0.9"]
    assert (code, err) == (1, "No run has hparams.lrr; did you mean hparams.lr?\n1 of 3 runs.\n")


def test_ls_writes_files(here: Path) -> None:
    """--csv and --parquet write all columns of the selected runs instead of a table."""
    from pyarrow import parquet

    code, out, err = call("ls", "runs", "--csv", "t.csv", "--parquet", "t.parquet", "--status", "completed")
    assert (code, out) == (0, "")
    assert err == "2 runs written to t.csv.\n2 runs written to t.parquet.\n2 of 3 runs.\n"
    with (here / "t.csv").open(newline="") as file:
        assert [row["max.val/acc"] for row in csv.DictReader(file)] == ["0.4", "0.9"]
    assert parquet.read_table(here / "t.parquet")["max.val/acc"].to_pylist() == [0.4, 0.9]


def test_ls_writes_csv_to_stdout(here: Path) -> None:
    """`--csv -` prints the CSV; for Parquet `-` is refused. Neither writes a file of that name."""
    code, out, _ = call("ls", "runs", "--csv", "-", "--run-id", "good")
    assert (code, [row["max.val/acc"] for row in csv.DictReader(out.splitlines())]) == (0, ["0.9"])
    assert call("ls", "runs", "--parquet", "-")[0] == 2
    assert not (here / "-").exists()


def test_a_wrong_condition_points_at_its_fault() -> None:
    """A wrong --where is wrong usage, with a caret below the character; so is a path that does not exist."""
    assert call("ls", "runs", "--where", "val/acc >> 3") == (
        2, "", "Error: --where: expected a name or a value instead of '>'.\n  val/acc >> 3\n           ^\n"
    )  # fmt: skip
    code, _, err = call("ls", "nowhere")
    assert (code, "nowhere" in err) == (2, True)


def test_hostile_text_is_escaped(here: Path) -> None:
    """Markup and control characters in ids, tags and notes are shown as text."""
    make_run(
        here / "evil" / "e", run_id="\x1b]0;x\x07[red]r[red]", tags=["[bold]\n", "\u202etag"], notes=":smile: [link=x]"
    )
    _, out, _ = call("ls", "evil")
    assert lines(out)[1].startswith("\\x1b]0;x\\x07[red]r[red] completed")
    assert lines(out)[1].endswith("[bold]\\n, \\u202etag")
    _, out, _ = call("show", "evil/e")
    assert ":smile: [link=x]" in lines(out)


def test_best() -> None:
    """`best` ranks ended runs by their best value, shows its step, and counts runs left out for their status."""
    code, out, err = call("best", "val/acc", "runs")
    assert (code, err) == (
        0,
        "2 of 3 runs.\n1 run was left out because of the status (1 killed); --status includes them.\n",
    )
    assert lines(out) == [
        "name val/acc.max at step last lr start duration",
        "good 0.9 7 0.8 0.1 2026-04-09 12:00 1d 1h",
        "poor 0.4 7 0.3 0.5 2026-04-10 12:00 1h 00m",
    ]


@pytest.mark.parametrize("run", ["good", "uid-good", "goo", "runs/good"])
def test_show(run: str) -> None:
    """`show` finds a run by its id, its identity, a prefix of its id, or its path; --json prints every field."""
    code, out, err = call("show", run, "runs")
    assert (code, err) == (0, "")
    expected = {"name good", "status completed", "duration 1d 1h", "tags sweep:1", "lr 0.1", "opt adam"}
    assert expected | {"metric last max max at step min count", "val/acc 0.8 0.9 7 0 10"} <= set(lines(out))
    told = json.loads(call("show", run, "runs", "--json")[1])
    assert (told["version"], told["run"]["run_id"], told["run"]["hparams"]) == (1, "good", {"lr": 0.1, "opt": "adam"})


def test_show_what_is_not_there_or_ambiguous(here: Path) -> None:
    """No match, or several, is wrong usage with a hint."""
    assert call("show", "nobody", "runs")[0] == 2
    assert "Hint: Did you mean good? " in call("show", "goood", "runs")[2]
    assert call("show", here / "cache", "runs")[0] == 2
    make_run(here / "runs" / "again", run_id="good")
    code, _, err = call("show", "good", "runs")
    assert (code, err.splitlines()[0]) == (2, "Error: 'good' can mean 2 runs:")
    assert sorted(line.strip() for line in err.splitlines()[1:3]) == [
        str(here / "runs" / name) for name in ("again", "good")
    ]


def test_show_a_run_that_cannot_be_read(here: Path) -> None:
    """A broken sidecar is an error with the reason."""
    (here / "runs" / "good" / "sidecar.json").write_text("{")
    code, _, err = call("show", "runs/good")
    assert (code, err.startswith(f"Error: {here}/runs/good/sidecar.json cannot be read")) == (1, True)


def test_scan(here: Path) -> None:
    """`scan` prints its counts for each of RUNS."""
    code, out, err = call("scan", "runs")
    assert (code, err) == (0, "")
    assert out.startswith(f"3 runs in {here}/runs (3 read), ")
    assert call("scan", "runs")[1].startswith(f"3 runs in {here}/runs (3 unchanged), ")
    assert call("scan", "runs", "--full")[1].startswith(f"3 runs in {here}/runs (3 read), ")


def test_scan_as_json(here: Path) -> None:
    """--json gives the counts and the reasons for unreadable runs, and then the exit code is 3."""
    (here / "runs" / "poor" / "sidecar.json").write_text("[]")
    code, out, err = call("scan", "runs", "--json", "--db", "own.sqlite")
    (told,) = json.loads(out)["scans"]
    seconds, problems = told.pop("seconds"), told.pop("problems")
    assert code == 3
    assert told == {
        "root": f"{here}/runs", "total": 3, "upserted": 2, "unchanged": 0, "invalid": 1, "orphaned": 0, "skipped": [],
    }  # fmt: skip
    assert (seconds > 0, [problem["run_dir"] for problem in problems]) == (True, [f"{here}/runs/poor"])
    assert err.startswith(f"! {here}/runs/poor: ")
    assert (here / "own.sqlite").exists()


def test_an_unusable_cache_is_reported_once_and_costs_nothing(here: Path) -> None:
    """Without a cache `ls` shows the same, with one message on stderr."""
    (here / "cache").write_text("in the way")
    code, out, err = call("ls", "runs")
    assert (code, len(lines(out)), len(err.splitlines())) == (0, 4, 2)
    assert err.startswith("The cache of runs cannot be used, so the runs are kept in memory: ")


def test_pipes_get_whole_lines(here: Path) -> None:
    """In a pipe, spaces align the columns and nothing is truncated."""
    make_run(here / "wide" / "a", run_id="x" * 300, tags=["日本", "t" * 200])
    _, out, _ = call("ls", "wide", "--columns", "tags,run_id,duration")
    assert out.splitlines() == [
        f"tags{' ' * 204}run_id{' ' * 294}  duration",
        f"日本, {'t' * 200}  {'x' * 300}    1h 00m",
    ]


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (30, "name status age"),
        (50, "name status age val/acc lr"),
        (80, "name status age duration val/acc lr opt tags"),
    ],
)
def test_terminals_get_what_fits(here: Path, columns: int, header: str) -> None:
    """A narrow terminal shows the names, then a metric, then what differs."""
    then = time.time() - 200
    make_run(here / "runs" / "new", created_at=then, summary={"val/acc": 0.7}, hparams={"lr": 0.2}, ended_at=then + 30)
    shown = _on_a_terminal(["ls", "runs"], columns=columns)
    assert [" ".join(line.split()) for line in shown if "name" in line] == [header]
    assert next(" ".join(line.split()) for line in shown if "new" in line).startswith("new completed 3 min")
    assert max(map(len, shown)) <= columns


def test_a_very_long_name_leaves_room_for_others(here: Path) -> None:
    """A metric whose name takes half of the terminal does not hide the shorter ones."""
    make_run(here / "long" / "a", summary={f"val/{'a' * 60}": 0.5, "val/b": 0.7})
    assert _on_a_terminal(["ls", "long"], columns=70)[0].split() == ["name", "status", "age", "duration", "val/b"]


def test_names_leave_out_their_common_part(here: Path) -> None:
    """Names omit the folders and tags that all runs share; two runs of one name show their paths."""
    for number in range(3):
        make_run(
            here / "many" / f"{number}", run_id=f"exp/lr-{min(number, 1)}/{number % 2}", tags=["all", f"own:{number}"]
        )
    _, out, _ = call("ls", "many", "--sort", "tags")
    assert [line.split()[0] for line in lines(out)] == ["name", "lr-0/0", "lr-1/1", "lr-1/0"]
    assert [line.split()[-1] for line in lines(out)] == ["tags", "own:0", "own:1", "own:2"]
    make_run(here / "many" / "again", run_id="exp/lr-0/0")
    assert "lr-0/0 (many/again)" in call("ls", "many")[1]


def test_show_tells_the_last_start(here: Path) -> None:
    """`show` prints command, host, commit and SLURM job of the last start, with secrets masked."""
    start = {"id": "s", "host": "node7", "user": "me", "command": "train.py --api-key=k3y", "git_commit": "abc"}
    start |= {"slurm": {"job_id": "7"}}
    make_run(here / "job", sessions=[{"id": "r"}, start], notes="One.\n\nTwo.")
    expected = {"starts 2", "command train.py --api-key=***", "host node7 as me", "commit abc", "SLURM job_id 7"}
    assert expected | {"One.", "Two."} <= set(lines(call("show", "job")[1]))


def _on_a_terminal(words: list[str], *, columns: int) -> list[str]:
    """Return the output on a terminal of that width, without colours."""
    drawn = on_a_terminal("-m", "bridge", *words, env={"COLUMNS": str(columns), "TERM": "xterm"})
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", drawn).splitlines()]


@pytest.mark.parametrize("command", ["ls", "scan", "export", "verify"])
def test_folders_that_are_no_runs_are_named(here: Path, command: str) -> None:
    """A foreign metrics.csv is named with the reason, also in --json, and does not change the exit code."""
    target = ["--to", "tensorboard", "--logdir", "tb"]
    words = ["runs", *(target if command in ("export", "verify") else [])]
    if command == "verify":
        call("export", *words)
    (here / "runs" / "table").mkdir()
    (here / "runs" / "table" / "metrics.csv").write_text("name,value\n")
    code, _, err = call(command, *words)
    reason = "metrics.csv has no column step, and so is not a logger's"
    assert (code, f"{here}/runs/table: skipped, because it is not a run: {reason}" in err) == (0, True)
    if command != "ls":
        told = json.loads(call(command, *words, "--json")[1])
        skipped = (told["scans"][0] if command == "scan" else told)["skipped"]
        assert skipped == [{"path": f"{here}/runs/table", "reason": reason}]


def test_ls_for_a_pipe_says_that_a_start_is_unknown(here: Path) -> None:
    """A run without a known start shows no time as its start."""
    run = here / "bare" / "version_0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("epoch,step,loss\n0,0,1.0\n")
    os.utime(run / "metrics.csv", (1775826000, 1775826000))
    line = next(line for line in call("ls", "bare")[1].splitlines() if "version_0" in line)
    assert line.split()[:3] == ["bare/version_0", "unknown", "unknown"]
