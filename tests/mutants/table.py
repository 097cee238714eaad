"""The mutants: each a fault that somebody could make, or that another tool made, with the tests that must notice it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_READING = (
    Mutant(
        "last becomes first",
        "bridge/rundir/resolve.py",
        "np.concatenate([[True], (step[1:] != step[:-1]) | ~equal])",
        "np.concatenate([[True], step[1:] != step[:-1]])",
        ("tests/rundir/test_golden.py", "tests/rundir/test_histories.py"),
    ),
    Mutant(
        "NaN is not NaN",
        "bridge/rundir/resolve.py",
        "equal = (value[1:] == value[:-1]) | (np.isnan(value[1:]) & np.isnan(value[:-1]))",
        "equal = value[1:] == value[:-1]",
        ("tests/rundir/test_golden.py", "tests/rundir/test_histories.py"),
    ),
    Mutant(
        "the running maximum is off",
        "bridge/rundir/resolve.py",
        "np.maximum(np.maximum.accumulate(pos), highest)",
        "np.maximum(pos, highest)",
        ("tests/rundir/test_golden.py", "tests/rundir/test_histories.py"),
    ),
    Mutant(
        "an equal repetition counts as a rewind",
        "bridge/rundir/series_state.py",
        "late &= ~repeated",
        "late |= repeated",
        ("tests/rundir/test_golden.py", "tests/rundir/test_histories.py"),
    ),
    Mutant(
        "the digest of rows is off",
        "bridge/rundir/place.py",
        "if to_hex(reading.digest) != (cursor.digest or to_hex(0)):",
        "if not cursor.header:",
        ("tests/rundir/test_growth.py",),
    ),
    Mutant(
        "a row without its newline is read",
        "bridge/rundir/header.py",
        """    end = data.rfind(b"\\n")
    if end < 0 or data.find(b'"') < 0:
        return end + 1""",
        """    end = data.rfind(b"\\n")
    if end < 0 or data.find(b'"') < 0:
        return len(data)""",
        ("tests/rundir/test_golden.py", "tests/rundir/test_histories.py"),
    ),
    Mutant(
        "a stopped heartbeat is not noticed",
        "bridge/rundir/run.py",
        "return Status.RUNNING if fresh else Status.KILLED",
        "return Status.RUNNING",
        ("tests/rundir/test_golden.py",),
    ),
    Mutant(
        "a killed run never ends",
        "bridge/rundir/run.py",
        "return last_alive if ended_at is None or status is Status.KILLED else ended_at",
        "return ended_at",
        ("tests/rundir/test_golden.py",),
    ),
    Mutant(
        "a link may lead out of the run directory",
        "bridge/rundir/paths.py",
        'if not real.startswith(f"{str(directory).rstrip(os.sep)}{os.sep}"):',
        "if not real:",
        ("tests/rundir/test_run.py", "tests/rundir/test_media.py"),
    ),
)

_TENSORBOARD = (
    Mutant(
        "TensorBoard: the cursor goes before the data",
        "bridge/exporters/tensorboard/writing.py",
        """        if self._disordered:
            self._order_media()
        for kind""",
        """        write_state(self._folder, self._before.with_(cursor=delta.after))
        for kind""",
        ("tests/crash/test_tensorboard.py",),
    ),
    Mutant(
        "TensorBoard: what was not acknowledged is built upon",
        "bridge/exporters/tensorboard/files.py",
        "self._place = kept.length",
        "self._place = self._path.stat().st_size",
        ("tests/exporters/tensorboard/test_target.py", "tests/crash/test_tensorboard.py"),
    ),
    Mutant(
        "TensorBoard: times are now",
        "bridge/exporters/tensorboard/writing.py",
        """        draft.write(version_record(self._run.start))
        return draft""",
        """        draft.write(version_record(__import__("time").time()))
        return draft""",
        ("tests/exporters/tensorboard/test_target.py", "tests/contract/test_contract.py"),
    ),
    Mutant(
        "TensorBoard: a row that lacks a metric is dropped",
        "bridge/exporters/tensorboard/encode.py",
        "filled = present.any(axis=0)",
        "filled = present.all(axis=0)",
        ("tests/exporters/tensorboard/test_encode.py",),
    ),
    Mutant(
        "TensorBoard: an edited event file is trusted",
        "bridge/exporters/tensorboard/files.py",
        "else checksum == kept.checksum",
        "else True",
        ("tests/exporters/tensorboard/test_damage.py",),
    ),
    Mutant(
        "TensorBoard: an edited state is trusted",
        "bridge/exporters/tensorboard/state.py",
        'data.pop("digest") != _digest(data):',
        'not data.pop("digest"):',
        ("tests/exporters/tensorboard/test_edits.py",),
    ),
    Mutant(
        "TensorBoard: what no state names is left over",
        "bridge/exporters/tensorboard/state.py",
        "if found_kind is not None and found_kind[0] not in files:",
        "if found_kind is None and name in files:",
        ("tests/exporters/tensorboard/test_edits.py",),
    ),
    Mutant(
        "TensorBoard: a caption that comes late is no description",
        "bridge/exporters/tensorboard/writing.py",
        "items[0].tag in self._steps and items[1].tag not in self._steps",
        "items[1].tag == items[0].tag",
        ("tests/exporters/tensorboard/test_media.py",),
    ),
)

_MLFLOW = (
    Mutant(
        "MLflow: the cursor goes before the data",
        "bridge/exporters/mlflow/database.py",
        "early = {key: value for key, value in change.tags.items() if key != CURSOR_TAG} if created else {}",
        "early = change.tags",
        ("tests/exporters/mlflow/test_database_safety.py",),
    ),
    Mutant(
        "MLflow: two writers do not see each other",
        "bridge/exporters/mlflow/database.py",
        "if cursor != change.expected_cursor:",
        "if cursor is None and change.expected_cursor is not None:",
        ("tests/exporters/mlflow/test_database_safety.py",),
    ),
    Mutant(
        "MLflow: status is always FINISHED",
        "bridge/exporters/mlflow/status.py",
        'Status.KILLED: "KILLED"',
        'Status.KILLED: "FINISHED"',
        ("tests/exporters/mlflow/test_content_facts.py",),
    ),
    Mutant(
        "MLflow: a run ends now",
        "bridge/exporters/mlflow/status.py",
        "return None if run.end is None else millis(run.end)",
        'return None if run.end is None else millis(__import__("time").time())',
        ("tests/exporters/mlflow/test_content_facts.py",),
    ),
    Mutant(
        "MLflow: NaN loses its flag",
        "bridge/exporters/mlflow/rows.py",
        "return KeyRows(key, timestamp, step, finite, is_nan)",
        "return KeyRows(key, timestamp, step, finite, np.zeros_like(is_nan))",
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

_VERBS = (
    Mutant(
        "a stop that Python dropped is forgotten",
        "bridge/interrupts.py",
        "    _asked = True\n",
        "    _asked = False\n",
        ("tests/test_signals.py::test_a_signal_that_python_drops_ends_a_follow_too",),
    ),
    Mutant(
        "verify takes any value for equal",
        "bridge/sync/compare.py",
        "values = np.flatnonzero(~_same_value(expected[2], found[2]))",
        "values = np.flatnonzero(expected[2] != expected[2])",
        ("tests/sync/test_compare.py",),
    ),
    Mutant(
        "verify does not miss a point",
        "bridge/sync/compare.py",
        "_list(Verdict.SOURCE_ONLY, name, expected, _others(expected, there), out)",
        "pass",
        ("tests/sync/test_compare.py",),
    ),
    Mutant(
        "verify does not look at what it cannot see twice",
        "bridge/sync/verify.py",
        "for extra in known[run.identity].extras:",
        "for extra in ():",
        ("tests/sync/test_verify.py",),
    ),
    Mutant(
        "the plain reader takes the last row of equal ones",
        "bridge/sync/truth.py",
        "if not _equal(value[kept], value[index]):",
        "if True:",
        ("tests/sync/test_truth.py",),
    ),
    Mutant(
        "the plain reader reads past the cursor",
        "bridge/sync/truth.py",
        "if self.limit is not None and self.rows > self.limit:",
        "if False:",
        ("tests/sync/test_truth.py",),
    ),
    Mutant(
        "what the source lost is not told",
        "bridge/sync/replay.py",
        "self._done = self._done + Applied(notices=delta.notices)",
        "self._done = self._done + Applied()",
        ("tests/sync/test_notices.py",),
    ),
    Mutant(
        "a run that was deleted comes back",
        "bridge/sync/replay.py",
        "if known.deleted and not self.job.rebuild:",
        "if known.error is not None:",
        ("tests/sync/test_export.py",),
    ),
)

_LOGGER = (
    Mutant(
        "logger: a torn last row stays",
        "logger/csv_writer.py",
        "os.ftruncate(self._descriptor, found.end)",
        "pass",
        ("tests/logger/test_csv_writer.py",),
    ),
    Mutant(
        "logger: the header grows in place",
        "logger/csv_writer.py",
        "        temporary.replace(real)\n",
        "        real.write_bytes(temporary.read_bytes())\n",
        ("tests/logger/test_csv_writer.py",),
    ),
    Mutant(
        "logger: NaN becomes the least value",
        "logger/stats.py",
        "        if value != value:",
        "        if self.count < 0:",
        ("tests/logger/test_statistics.py",),
    ),
    Mutant(
        "logger: a preemption is a failure",
        "logger/status.py",
        "if error is not None and _interrupts(error):",
        'if word == "preempted":',
        ("tests/logger/test_registry_logger.py",),
    ),
    Mutant(
        "logger: a heartbeat outlives the end",
        "logger/sidecar.py",
        '        if read_sidecar(run_dir).get("status") in TERMINAL_STATUSES:\n            return False\n',
        "        read_sidecar(run_dir)\n",
        ("tests/logger/test_sidecar.py",),
    ),
)

_REGISTRY = (
    Mutant(
        "registry: a sidecar that became older is not read",
        "bridge/registry/scanner.py",
        "return before.stamp == stamp or (",
        "return before.stamp >= stamp or (",
        ("tests/registry/test_scan.py",),
    ),
    Mutant(
        "registry: a dead run stays running",
        "bridge/registry/scanner.py",
        "if before.status is Status.RUNNING or before.last_alive >= doubtful_since:",
        "if before.last_alive >= doubtful_since + 1e9:",
        ("tests/registry/test_scan.py",),
    ),
    Mutant(
        "registry: somebody's file is overwritten",
        "bridge/registry/store.py",
        "return bool(head) and not own_place",
        "return False",
        ("tests/registry/test_store.py",),
    ),
    Mutant(
        "--where: a missing value compares true",
        "bridge/registry/tree.py",
        "return not _missing(found) and _compare(found, self.op, self.value)",
        "return _missing(found) or _compare(found, self.op, self.value)",
        ("tests/registry/test_where.py",),
    ),
    Mutant(
        "--top ranks by the last value",
        "bridge/sync/select.py",
        'record.metric(self.metric, "last" if self.last else self.mode)',
        'record.metric(self.metric, "last")',
        ("tests/sync/test_select.py",),
    ),
)

_SECURITY = (
    Mutant(
        "a pipe counts as a file",
        "bridge/rundir/paths.py",
        "    if not stat.S_ISREG(found.st_mode):\n        raise",
        "    if stat.S_ISDIR(found.st_mode):\n        raise",
        ("tests/security/test_paths.py",),
    ),
    Mutant(
        "MLflow: a checkpoint may be a link to anybody's file",
        "bridge/exporters/mlflow/checkpoints.py",
        "or not real.is_relative_to(folder) or",
        "or",
        ("tests/security/test_paths.py",),
    ),
    Mutant(
        "an alias costs nothing",
        "bridge/rundir/hparams.py",
        "self.letters -= len(name) + (len(value) if isinstance(value, str | bytes) else 0)",
        "self.letters -= len(name)",
        ("tests/security/test_costly.py",),
    ),
    Mutant(
        "a server's answer is told as it is",
        "bridge/exporters/mlflow/seam.py",
        'hide_all(" ".join(str(text).split()))',
        '" ".join(str(text).split())',
        ("tests/security/test_credentials.py",),
    ),
)

MUTANTS: tuple[Mutant, ...] = (*_READING, *_TENSORBOARD, *_MLFLOW, *_VERBS, *_LOGGER, *_REGISTRY, *_SECURITY)
