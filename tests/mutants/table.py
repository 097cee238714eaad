"""The mutants: faults that somebody could make, or that another tool made, with the tests that must notice them."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_OVERLAP = ("tests/rundir/test_golden.py", "tests/rundir/test_histories.py")

_READING = (
    Mutant(
        "the first value of a step counts",
        "bridge/rundir/overlap.py",
        "is_last = np.concatenate([steps[1:] != steps[:-1], [True]])",
        "is_last = np.concatenate([[True], steps[1:] != steps[:-1]])",
        _OVERLAP,
    ),
    Mutant(
        "NaN differs from NaN",
        "bridge/rundir/overlap.py",
        "(one == other) | (np.isnan(one) & np.isnan(other))",
        "one == other",
        _OVERLAP,
    ),
    Mutant(
        "another value at the last step is no late point",
        "bridge/rundir/overlap.py",
        "late = step <= steps[:-1]",
        "late = step < steps[:-1]",
        _OVERLAP,
    ),
    Mutant(
        "an equal repetition is a rewind",
        "bridge/rundir/overlap.py",
        "late &= ~repeated",
        "late |= repeated",
        _OVERLAP,
    ),
    Mutant(
        "a rewritten file is trusted",
        "bridge/rundir/resume.py",
        "if to_hex(state.digest) != (cursor.digest or NO_ROWS):",
        "if not cursor.header:",
        ("tests/rundir/test_growth.py",),
    ),
    Mutant(
        "a row without its newline is read",
        "bridge/rundir/header.py",
        'ends = (data.rfind(b"\\n", begin, end) for begin, end in reversed(list(_unquoted(data))))',
        "ends = (end - 1 for begin, end in reversed(list(_unquoted(data))))",
        _OVERLAP,
    ),
    Mutant(
        "a stopped heartbeat is not noticed",
        "bridge/rundir/times.py",
        'return Status.KILLED if word == "running" else Status.UNKNOWN',
        'return Status.RUNNING if word == "running" else Status.UNKNOWN',
        ("tests/rundir/test_golden.py",),
    ),
    Mutant(
        "a killed run ends when it began",
        "bridge/rundir/times.py",
        "return max(life.last if life.last is not None else start, start), not life.stated",
        "return start, not life.stated",
        ("tests/rundir/test_golden.py",),
    ),
)

_EVENTS = (
    Mutant(
        "event files: a length of terabytes is believed",
        "bridge/rundir/event_file.py",
        "elif size <= end - offset:",
        "elif size:",
        ("tests/rundir/test_event_files.py",),
    ),
    Mutant(
        "event files: Lightning's placeholder is a point",
        "bridge/rundir/event_runs.py",
        'points = points[~(is_tag & (points["step"] == step) & (points["value"] == value))]',
        "points = points[is_tag | ~is_tag]",
        ("tests/rundir/test_event_files.py",),
    ),
    Mutant(
        "event files: pictures that were not stored do not come again",
        "bridge/rundir/media.py",
        "media_kept_up = cursor is not None and cursor.media_offset == cursor.offset",
        "media_kept_up = cursor is not None",
        ("tests/rundir/test_event_files.py",),
    ),
    Mutant(
        "event files: the cache of runs does not look at them",
        "bridge/registry/store.py",
        "stamped = sorted(filter(is_event_file, names)) or sorted(event_names(run_dir))",
        "stamped = []",
        ("tests/sync/test_event_runs.py",),
    ),
)

_TENSORBOARD = (
    Mutant(
        "TensorBoard: the cursor may be on the disk before the data",
        "bridge/exporters/tensorboard/state.py",
        "        if not is_one_write:\n            os.fsync(self._descriptor)\n",
        "",
        ("tests/exporters/tensorboard/test_lock_and_disk.py",),
    ),
    Mutant(
        "TensorBoard: old files are removed before the new state",
        "bridge/exporters/tensorboard/target.py",
        "        write_state(self._folder, state)\n",
        """        for name in leftover_files(self._folder, state, self._held.names):
            os.unlink(f"{self._folder}/{name}")
        write_state(self._folder, state)
""",
        ("tests/exporters/tensorboard/test_damage.py", "tests/crash/test_tensorboard.py"),
    ),
    Mutant(
        "TensorBoard: bytes that no state acknowledges are kept",
        "bridge/exporters/tensorboard/target.py",
        'return os.stat(f"{self._folder}/{record.name}").st_size > record.length  # noqa: PTH116',
        "return False",
        ("tests/exporters/tensorboard/test_target.py", "tests/crash/test_tensorboard.py"),
    ),
    Mutant(
        "TensorBoard: files begin now",
        "bridge/exporters/tensorboard/target.py",
        "write(version_record(self._run.start))",
        'write(version_record(__import__("time").time()))',
        ("tests/exporters/tensorboard/test_target.py", "tests/contract/test_contract.py"),
    ),
    Mutant(
        "TensorBoard: a row that lacks a metric is dropped",
        "bridge/exporters/tensorboard/events.py",
        "filled = present.any(axis=0)",
        "filled = present.all(axis=0)",
        ("tests/exporters/tensorboard/test_encode.py",),
    ),
    Mutant(
        "TensorBoard: an edited event file is trusted",
        "bridge/exporters/tensorboard/state.py",
        "return checksum == record.checksum",
        "return bool(checksum)",
        ("tests/exporters/tensorboard/test_damage.py",),
    ),
    Mutant(
        "TensorBoard: an edited state is trusted",
        "bridge/exporters/tensorboard/state.py",
        'data.pop("digest") != digest(json.dumps(data, sort_keys=True), 32):',
        'not data.pop("digest"):',
        ("tests/exporters/tensorboard/test_damage.py",),
    ),
    Mutant(
        "TensorBoard: a picture that comes late is appended",
        "bridge/exporters/tensorboard/target.py",
        "if last is not None and last >= event.step:",
        "if last is not None and last == event.step:",
        ("tests/exporters/tensorboard/test_media.py",),
    ),
)

_MLFLOW = (
    Mutant(
        "MLflow: two writers do not see each other",
        "bridge/exporters/mlflow/write_db.py",
        "    if cursor != update.expected_cursor:",
        "    if False:",
        ("tests/exporters/mlflow/test_database_safety.py",),
    ),
    Mutant(
        "MLflow: a rewind deletes nothing",
        "bridge/exporters/mlflow/write_db.py",
        "        if not run.delete_points(update):\n",
        "        if False:\n",
        ("tests/exporters/mlflow/test_database.py", "tests/contract/test_contract.py"),
    ),
    Mutant(
        "MLflow: a killed run is finished",
        "bridge/exporters/mlflow/facts.py",
        'Status.KILLED: "KILLED"',
        'Status.KILLED: "FINISHED"',
        ("tests/exporters/mlflow/test_content_facts.py",),
    ),
    Mutant(
        "MLflow: a run ends now",
        "bridge/exporters/mlflow/facts.py",
        "end=None if run.end is None else milliseconds(run.end),",
        'end=None if run.end is None else milliseconds(__import__("time").time()),',
        ("tests/exporters/mlflow/test_content_facts.py",),
    ),
    Mutant(
        "MLflow: NaN loses its flag",
        "bridge/exporters/mlflow/rows.py",
        "value[at, which], is_nan[at, which])",
        "value[at, which], np.zeros_like(is_nan[at, which]))",
        ("tests/exporters/mlflow/test_database.py",),
    ),
    Mutant(
        "MLflow: any row is the latest",
        "bridge/exporters/mlflow/rows.py",
        "left = np.flatnonzero(self.step == self.step.max())",
        "left = np.flatnonzero(self.step == self.step.min())",
        ("tests/exporters/mlflow/test_database.py",),
    ),
)

_SYNC = (
    Mutant(
        "a stop that Python dropped is forgotten",
        "bridge/interrupts.py",
        "    _asked, _asked_at = True, time.monotonic()\n",
        "    _asked, _asked_at = False, time.monotonic()\n",
        ("tests/test_signals.py::test_a_signal_that_python_drops_ends_a_follow_too",),
    ),
    Mutant(
        "verify takes any value for equal",
        "bridge/sync/compare.py",
        "wrong = ~same_values(value, held_value)",
        "wrong = value != value",
        ("tests/sync/test_compare.py",),
    ),
    Mutant(
        "verify does not miss a point",
        "bridge/sync/compare.py",
        "out.add_points(name, np.delete(step, here), np.delete(value, here), None)",
        "pass",
        ("tests/sync/test_compare.py",),
    ),
    Mutant(
        "verify does not see a second target of a run",
        "bridge/sync/verify.py",
        "for extra in state.extras:",
        "for extra in ():",
        ("tests/sync/test_verify_tensorboard.py::test_a_second_target_of_one_run_is_found",),
    ),
    Mutant(
        "notices of the reader are not reported",
        "bridge/sync/export.py",
        "self.done += Applied(notices=delta.notices)",
        "self.done += Applied()",
        ("tests/sync/test_export.py",),
    ),
    Mutant(
        "a deleted run comes back",
        "bridge/sync/export.py",
        "if state.deleted and not self.task.rebuild:",
        "if state.error is not None:",
        ("tests/sync/test_export.py",),
    ),
)

_LOGGER = (
    Mutant(
        "logger: a torn last row stays",
        "logger/csv_file.py",
        "            os.ftruncate(self._descriptor, end)",
        "            pass",
        ("tests/logger/test_csv_file.py",),
    ),
    Mutant(
        "logger: files are replaced in place",
        "logger/files.py",
        "        os.replace(temporary, real)  # noqa: PTH105\n",
        '        open(real, "wb").write(open(temporary, "rb").read())\n',
        ("tests/logger/test_csv_file.py", "tests/logger/test_sidecar.py"),
    ),
    Mutant(
        "logger: a preemption is a failure",
        "logger/session.py",
        "if error is not None and (_interrupts(error) or was_pruned(error)):",
        'if word == "preempted":',
        ("tests/logger/test_registry_logger.py",),
    ),
)

_REGISTRY = (
    Mutant(
        "registry: a run that was made in an old run directory is not found",
        "bridge/rundir/discover.py",
        "if not files or now != before:",
        "if not files:",
        ("tests/registry/test_scan.py",),
    ),
    Mutant(
        "registry: a sidecar that became older is not read",
        "bridge/registry/store.py",
        "return before.stamp == stamp or (",
        "return before.stamp >= stamp or (",
        ("tests/registry/test_scan.py",),
    ),
    Mutant(
        "registry: a dead run stays running",
        "bridge/registry/store.py",
        "if before.status == Status.RUNNING or before.last_alive >= doubtful_since:",
        "if before.last_alive >= doubtful_since + 1e9:",
        ("tests/registry/test_scan.py",),
    ),
    Mutant(
        "registry: somebody's file is overwritten",
        "bridge/registry/store.py",
        ' and head[68:72] == _APPLICATION_ID.to_bytes(4, "big")',
        "",
        ("tests/registry/test_store.py",),
    ),
    Mutant(
        "--where: a missing value compares true",
        "bridge/registry/where.py",
        "return found is not ... and found == found and test(found)",
        "return found is ... or test(found)",
        ("tests/registry/test_where.py",),
    ),
    Mutant(
        "--top ranks by the last value",
        "bridge/sync/select.py",
        'self.metric, "last" if self.last else self.mode)',
        'self.metric, "last")',
        ("tests/sync/test_select.py",),
    ),
)

_SECURITY = (
    Mutant(
        "a link may lead out of the run directory",
        "bridge/files.py",
        'if not real.startswith(f"{str(directory).rstrip(os.sep)}{os.sep}"):',
        "if not real:",
        ("tests/rundir/test_run.py", "tests/rundir/test_media.py"),
    ),
    Mutant(
        "a pipe counts as a file",
        "bridge/files.py",
        '    if not stat.S_ISREG(found.st_mode):\n        raise Refused("is not a regular file")',
        '    if stat.S_ISDIR(found.st_mode):\n        raise Refused("is not a regular file")',
        ("tests/security/test_paths.py",),
    ),
    Mutant(
        "a server's answer is shown as it is",
        "bridge/exporters/mlflow/errors.py",
        'line = hide_all(" ".join(str(text).split()))',
        'line = " ".join(str(text).split())',
        ("tests/security/test_credentials.py",),
    ),
)

MUTANTS: tuple[Mutant, ...] = (*_READING, *_EVENTS, *_TENSORBOARD, *_MLFLOW, *_SYNC, *_LOGGER, *_REGISTRY, *_SECURITY)
