"""Every option, declared once, and the file bridge.yaml that sets defaults for them.

Each struct below is one group of options. A field's name is the keyword of the Python API, its type says which values
the option takes, and its `Option` adds the help text, how the command line writes it, and its key in bridge.yaml.
Click's options (`bridge.cli.command`), the keyword checks of `bridge.api`, the model and the JSON schema of
bridge.yaml, and the reference pages are all made from these fields.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote

import msgspec

from bridge.errors import UsageError
from logger.values import SECRET_KEYS

CONFIG_NAME = "bridge.yaml"

CONFIG_FORMAT = 1
"""The newest `format` of bridge.yaml that this version reads; a file without the key has format 1."""

S = TypeVar("S", bound=msgspec.Struct)


class Option(NamedTuple):
    """Describe one option beyond its name and type."""

    help: str
    metavar: str = ""
    flag: str = ""
    """How the command line writes the option, where that is not `--` and the field's name."""
    key: str = ""
    """The dotted key in bridge.yaml; empty for an option that the file cannot set."""
    least: float | None = None
    most: float | None = None
    variable: str = ""
    """An environment variable that is read besides BRIDGE_NAME."""
    completes: str = ""
    """What a shell completes here: `exporters`, `metrics`, `tags` or `run_ids`."""
    shorthand: tuple[str, str] = ("", "")
    """A second flag, and the value that it stands for."""
    is_uri: bool = False


HeartbeatTimeout: TypeAlias = Annotated[
    float,
    Option("Show a running run as killed if its heartbeat is older.", "SECONDS", key="heartbeat_timeout", least=0),
]


class RunsArgument(msgspec.Struct, frozen=True, kw_only=True):
    """The argument RUNS, which is no option but has a default in bridge.yaml and in BRIDGE_RUNS."""

    runs: Annotated[tuple[Path, ...], Option("Run directories, or folders above them.", key="runs")] = ()


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where runs go."""

    to: Annotated[
        str,
        Option(
            "The kind of target: mlflow, tensorboard, or another exporter that is installed.",
            "[mlflow|tensorboard|...]",
            completes="exporters",
        ),
    ] = ""
    tracking_uri: Annotated[
        str | None,
        Option(
            "MLflow: a server, or a database such as sqlite:///mlflow.db. Default: MLflow's own.",
            "URI",
            key="mlflow.tracking_uri",
            variable="MLFLOW_TRACKING_URI",
            is_uri=True,
        ),
    ] = None
    experiment: Annotated[
        str | None,
        Option(
            "MLflow: the experiment; may hold {tags.x}, {hparams.a.b}, {parent}. Default: MLflow's own.",
            "NAME",
            key="mlflow.experiment",
            variable="MLFLOW_EXPERIMENT_NAME",
        ),
    ] = None
    experiment_default: Annotated[
        str | None,
        Option(
            "MLflow: the experiment of runs that lack a placeholder of --experiment.",
            "NAME",
            key="mlflow.experiment_default",
        ),
    ] = None
    database_uri: Annotated[
        str | None,
        Option(
            "MLflow: the database behind the server; points are written straight into it, which is fast.",
            "URI",
            key="mlflow.database_uri",
            is_uri=True,
        ),
    ] = None
    logdir: Annotated[
        Path, Option("TensorBoard: the folder that TensorBoard is started on.", "DIR", key="tensorboard.logdir")
    ] = Path("tb_logs")


class FilterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs, each judged by itself."""

    run_ids: Annotated[
        tuple[str, ...],
        Option("Only runs whose id matches; may repeat.", "GLOB", flag="--run-id", completes="run_ids"),
    ] = ()
    tags: Annotated[
        tuple[str, ...],
        Option(
            "Only runs with a tag that matches; may repeat, then all must match.", "TAG", flag="--tag", completes="tags"
        ),
    ] = ()
    statuses: Annotated[
        tuple[Literal["running", "completed", "failed", "interrupted", "killed", "unknown"], ...],
        Option("Only runs with this status; may repeat.", flag="--status"),
    ] = ()
    kinds: Annotated[
        tuple[Literal["RegistryLogger", "CSVLogger", "TensorBoardLogger"], ...],
        Option("Only runs that this logger wrote; may repeat.", flag="--kind"),
    ] = ()
    since: Annotated[
        str | None, Option("Only runs that were alive in the last 90m, 12h, 3d, or since 2026-04-10.", "WHEN")
    ] = None
    where: Annotated[
        str | None, Option("Only runs that meet this condition: 'val/acc > 0.7 and hparams.lr < 0.1'.", "EXPR")
    ] = None
    archived: Annotated[bool, Option("Include archived runs.")] = False


class SelectionOptions(FilterOptions, frozen=True, kw_only=True):
    """Which runs, with the best by a metric as well."""

    top: Annotated[
        tuple[int, str] | None,
        Option("Only the N runs with the best value ever, of those that completed.", "N METRIC:max|min"),
    ] = None
    last: Annotated[bool, Option("With --top: rank by the last value instead.")] = False


class ContentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What of a run a target holds.

    A target keeps the options it was made with: only options that are given replace them. The word `none`, and `*` for
    `metrics`, stands for an option's default. `metrics` and `exclude_metrics` are globs on metric names, `volatile`
    are globs on flat hyperparameter keys (case does not matter), `redact` are globs on any key.
    """

    metrics: Annotated[
        tuple[str, ...],
        Option("Only metrics whose name matches; may repeat.", "GLOB", key="metrics.include", completes="metrics"),
    ] = ()
    exclude_metrics: Annotated[
        tuple[str, ...],
        Option("No metrics whose name matches; may repeat.", "GLOB", key="metrics.exclude", completes="metrics"),
    ] = ()
    media: Annotated[bool, Option("With or without images and videos.", key="media")] = True
    artifacts: Annotated[
        Literal["ended", "now", "none"],
        Option(
            "MLflow: upload metrics.csv and other files once the run has ended, now, or never.",
            key="mlflow.artifacts",
            shorthand=("--no-artifacts", "none"),
        ),
    ] = "ended"
    checkpoints: Annotated[bool, Option("MLflow: upload the checkpoint too.", key="mlflow.checkpoints")] = False
    best: Annotated[
        tuple[str, ...],
        Option("MLflow: keep the best value so far as a separate metric; may repeat.", "METRIC:max|min", key="best"),
    ] = ()
    rename: Annotated[
        tuple[tuple[str, str], ...],
        Option("Give a metric another name; may repeat.", "OLD=NEW", key="metrics.rename"),
    ] = ()
    redact: Annotated[
        tuple[str, ...],
        Option(
            "Mask hyperparameters whose key matches, instead of the built-in list; may repeat.", "GLOB", key="redact"
        ),
    ] = SECRET_KEYS
    volatile: Annotated[
        tuple[str, ...],
        Option("MLflow: hyperparameters that may differ after a requeue; may repeat.", "GLOB", key="mlflow.volatile"),
    ] = ("*ckpt_path*", "*resume*", "*job_id*")
    flat: Annotated[bool, Option("MLflow: no parent runs for sweeps.", key="mlflow.flat")] = False

    def __post_init__(self) -> None:
        """Put back the options that say so. Raise UsageError for a `best` without a direction, or with both."""
        for name, words in _PUT_BACK.items():
            if getattr(self, name) == words:
                msgspec.structs.force_setattr(self, name, _CONTENT_DEFAULTS[name])
        for text in self.best:
            metric, _, direction = text.rpartition(":")
            if not metric or direction not in ("max", "min"):
                raise UsageError(f"--best: {text!r} does not say which end is best.", hint=f"--best {text}:max")
        if len(self.bests) < len(set(self.best)):
            raise UsageError("--best: the best of one metric is either its max or its min.")

    @property
    def bests(self) -> dict[str, int]:
        """Return the metrics of `best`, each with 1 if its greatest value is the best and -1 if its least is."""
        parts = (text.rpartition(":") for text in self.best)
        return {metric: 1 if direction == "max" else -1 for metric, _, direction in parts}

    def wants(self, metric: str) -> bool:
        """Return whether the globs choose the metric of this name."""
        if self.metrics and not any(fnmatchcase(metric, glob) for glob in self.metrics):
            return False
        return not any(fnmatchcase(metric, glob) for glob in self.exclude_metrics)

    @classmethod
    def kept(cls, differences: Mapping[str, Any]) -> Self:
        """Return the options that a cursor keeps as `differences`. Unknown names are ignored.

        Return the defaults if a value is none that such an option can have: then the target is rebuilt.
        """
        try:
            return msgspec.convert(dict(differences), cls)
        except msgspec.ValidationError:
            return cls()

    def differences(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as JSON values; a cursor keeps these."""
        return dict(_differences(self))


@functools.lru_cache(maxsize=8)
def _differences(content: ContentOptions) -> dict[str, Any]:
    """Return `content.differences()`, which most runs of an export share."""
    return {
        name: _as_json(value)
        for name, default in _CONTENT_DEFAULTS.items()
        if (value := getattr(content, name)) != default
    }


_PUT_BACK = {
    "metrics": ("*",),
    "rename": (("none", ""),),
    **dict.fromkeys(("exclude_metrics", "best", "redact", "volatile"), ("none",)),
}
"""The value that puts each option back to its default."""

_CONTENT_DEFAULTS = {item.name: item.default for item in msgspec.structs.fields(ContentOptions)}


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an export is done."""

    rebuild: Annotated[bool, Option("Replace every target by a new one.")] = False
    new_identity: Annotated[str | None, Option("Export one run under another identity.", "ID", flag="--as")] = None
    heartbeat_timeout: HeartbeatTimeout = 180.0
    workers: Annotated[
        int | None, Option("Processes that work at once. Default: the cores.", "N", key="workers", least=1)
    ] = None
    dask: Annotated[
        str | None, Option("Work on this Dask cluster: tcp://host:8786, or a scheduler file.", "ADDRESS")
    ] = None
    dry_run: Annotated[bool, Option("Print what would be done, and change nothing.")] = False
    follow: Annotated[bool, Option("Keep exporting what is new, until Ctrl-C.")] = False
    interval: Annotated[
        float, Option("With --follow: seconds between two looks for changes.", "SECONDS", least=0.05)
    ] = 10.0
    until_done: Annotated[bool, Option("With --follow: end when every run has completed or failed.")] = False
    grace: Annotated[
        float,
        Option(
            "With --until-done: count a killed or interrupted run as done after this long; it may be requeued.",
            "SECONDS",
            least=0,
        ),
    ] = 3600.0


class CompareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How verify compares."""

    sample: Annotated[
        int | None,
        Option("Compare only N metrics of each run, always the same ones (for large targets).", "N", least=1),
    ] = None
    strict: Annotated[bool, Option("Count what was not exported yet as a difference.")] = False
    new_identity: Annotated[str | None, Option("The run was exported under this identity.", "ID", flag="--as")] = None
    workers: Annotated[int | None, Option("Processes that work at once. Default: the cores.", "N", least=1)] = None
    heartbeat_timeout: HeartbeatTimeout = 180.0


class ViewOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How view shows a target."""

    port: Annotated[
        int | None, Option("The port of the page. Default: 6006 or 5000, or any free one.", "P", least=1, most=65535)
    ] = None
    host: Annotated[
        str, Option("Listen on this address. With any but 127.0.0.1, other machines can see the runs.", "ADDRESS")
    ] = "127.0.0.1"
    open: Annotated[bool, Option("Open a browser, if there is a screen, or only print the address.")] = True
    edit: Annotated[
        bool, Option("MLflow: let the page change names, descriptions and tags of runs, in their sidecars.")
    ] = False
    heartbeat_timeout: HeartbeatTimeout = 180.0
    interval: Annotated[float, Option("Seconds between two looks for new rows.", "SECONDS", least=0.05)] = 10.0


class CacheOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How runs are read."""

    db: Annotated[
        Path | None, Option("The SQLite file that caches the runs. Default: in the user's cache directory.", "FILE")
    ] = None
    heartbeat_timeout: HeartbeatTimeout = 180.0


class TableOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a table shows, and where it goes."""

    columns: Annotated[
        str | None, Option("The columns to show: run_id,status,val/acc,val/acc.max,hparams.lr", "NAMES")
    ] = None
    csv: Annotated[Path | None, Option("Write all columns to FILE as CSV; `-` is stdout.", "FILE")] = None
    parquet: Annotated[Path | None, Option("Write all columns to FILE as Parquet.", "FILE")] = None


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How much is printed, and as what."""

    json: Annotated[bool, Option("Print the result as JSON.")] = False
    quiet: Annotated[bool, Option("Print only errors and requested results.", flag="-q --quiet")] = False
    verbose: Annotated[bool, Option("Print more on stderr.", flag="-v --verbose")] = False


GROUPS: tuple[type[msgspec.Struct], ...] = (
    RunsArgument, TargetOptions, SelectionOptions, ContentOptions, ExportOptions
)  # fmt: skip
"""The groups of `bridge export`; bridge.yaml sets those of their options that have a key."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a group: its name, its bare type, and its `Option`."""

    name: str
    type: Any
    option: Option
    default: Any

    @property
    def is_list(self) -> bool:
        """Return whether the option may repeat."""
        return get_origin(self.type) is tuple and get_args(self.type)[-1] is ...

    @property
    def item(self) -> Any:
        """Return the type of one value: without `None`, and without the list around it."""
        parts = [part for part in get_args(self.type) if part not in (type(None), ...)]
        return parts[0] if self.is_list or type(None) in get_args(self.type) else self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the values of an option that takes only certain ones."""
        return get_args(self.item) if get_origin(self.item) is Literal else ()


@functools.cache
def fields_of(group: type[msgspec.Struct]) -> tuple[Field, ...]:
    """Return the fields of a group of options, in their order."""
    hints = get_type_hints(group, include_extras=True)
    defaults = {item.name: item.default for item in msgspec.structs.fields(group)}
    return tuple(Field(name, hints[name].__origin__, hints[name].__metadata__[0], defaults[name]) for name in defaults)


def _all_fields() -> list[Field]:
    return [item for group in GROUPS for item in fields_of(group)]


def checked(group: type[S], given: Mapping[str, Any], *, what: str) -> S:
    """Return the keywords `given` to the Python API as a group of options. One text is a list of one.

    Raises UsageError for a keyword that the group lacks (`what` says what it is no option of) and for a wrong value.
    """
    known = {item.name: item for item in fields_of(group)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{name} is not an option of {what}.", hint=did_you_mean(name, known, "Options"))
        values[name] = value
        if name == "rename" and value == "none":
            values[name] = ()
        elif known[name].is_list:
            pairs = value.items() if isinstance(value, Mapping) else value
            values[name] = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(pairs)
    try:
        return msgspec.convert(values, group)
    except msgspec.ValidationError as error:
        raise UsageError(in_words(error)) from None


def did_you_mean(name: str, known: Iterable[str], kind: str) -> str:
    """Return a hint: the known name that is nearest to `name`, or a list of all."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    last = [other for other in names if other.rpartition(".")[2] == name.rpartition(".")[2]]
    found = [*near, *last][:1]
    return f"Did you mean {found[0]!r}?" if found else f"{kind}: {', '.join(names)}."


def as_written(values: Iterable[object]) -> str:
    """Return the values of an option that may repeat as they are given in a variable, a pair as `OLD=NEW`."""
    return " ".join("=".join(value) if isinstance(value, list | tuple) else str(value) for value in values)


def in_words(error: msgspec.ValidationError) -> str:
    """Return msgspec's message with the place first, and with the choices of an option that has some."""
    message, _, place = str(error).partition(" - at `$.")
    place = place.rstrip("`")
    message = message[:1].lower() + message[1:]
    choices = next((item.choices for item in _all_fields() if place in (item.name, item.option.key)), ())
    if choices and "enum value" in message:
        message += f", expected {', '.join(choices[:-1])} or {choices[-1]}"
    return f"{place}: {message}." if place else f"{message}."


# ---------------------------------------------------------------------------------------------------- bridge.yaml


@dataclass(frozen=True, slots=True)
class Config:
    """The values of a bridge.yaml by option name; `path` is None where there is no file. Paths are absolute."""

    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def config_keys() -> dict[str, Field]:
    """Return the option that each dotted key of bridge.yaml sets."""
    return {item.option.key: item for item in _all_fields() if item.option.key}


def find_config(start: Path) -> Path | None:
    """Return the nearest bridge.yaml in `start` or in a folder above it."""
    start = start.absolute()
    return next((path for folder in (start, *start.parents) if (path := folder / CONFIG_NAME).is_file()), None)


_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*?)`(?: - at `\$\.(?P<place>.*)`)?$", re.DOTALL)


def load_config(path: Path) -> Config:
    """Read and check the bridge.yaml at `path`. Relative paths in it start at its own folder.

    Raises UsageError, with the file and the key, for what is no YAML, an unknown key (with the nearest known one) and a
    value of the wrong type.
    """
    from logger.hparams import load_yaml

    try:
        data: Any = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise UsageError(f"{path} cannot be read: {error}.") from error
    data = {} if data is None else data
    try:
        msgspec.convert(data, config_model())
    except msgspec.ValidationError as error:
        unknown = _UNKNOWN_FIELD.match(str(error))
        if not unknown:
            raise UsageError(f"{path}: {in_words(error)}") from None
        key = ".".join(filter(None, (unknown["place"], unknown["name"])))
        raise UsageError(f"{path}: unknown key {key!r}.", hint=did_you_mean(key, config_keys(), "Known keys")) from None
    if data.get("format", 1) > CONFIG_FORMAT:
        raise UsageError(
            f"{path}: made for a newer bridge (format {data['format']}, this one reads {CONFIG_FORMAT}).",
            hint="pip install --upgrade registry-bridge",
        )
    options: dict[str, Any] = {}
    for key, item in config_keys().items():
        *groups, last = key.split(".")
        place = functools.reduce(lambda found, group: found.get(group, {}), groups, data)
        if last in place:
            options[item.name] = _default_for(item, place[last], path)
    return Config(path=path, options=options)


def _default_for(item: Field, value: Any, path: Path) -> Any:
    """Return a value of bridge.yaml as the command line takes it."""
    if isinstance(value, dict):
        return tuple(f"{old}={new}" for old, new in value.items())
    if item.is_list:
        values = (value,) if isinstance(value, str) else tuple(value)
        return tuple(_resolved(text, path) for text in values) if item.item is Path else values
    if item.item is Path:
        return _resolved(value, path)
    return _absolute_uri(value, path.parent) if item.option.is_uri else value


def _resolved(text: str, path: Path) -> str:
    """Return a path of bridge.yaml, which starts at the file's own folder."""
    if "\0" in text:
        raise UsageError(f"{path}: {text!r} is not a path.")
    try:
        return str(path.parent / Path(text).expanduser())
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no home directory for {text!r}.", hint="Give the whole path.") from error


def _absolute_uri(uri: str, folder: Path) -> str:
    """Return `uri`; the relative path of a SQLite file (`sqlite:///` and no further slash) starts at `folder`."""
    scheme, separator, place = uri.partition(":///")
    if not (scheme.startswith("sqlite") and separator and place) or place.startswith(("/", ":memory:")):
        return uri
    return f"{scheme}:///{quote(str(folder.absolute()))}/{place}"


@functools.cache
def config_model() -> type[msgspec.Struct]:
    """Return the struct of bridge.yaml, made from the fields that have a key."""
    tree: dict[str, Any] = {"format": Annotated[int, msgspec.Meta(ge=1, description="The version of this format: 1.")]}
    for key, item in config_keys().items():
        *groups, last = key.split(".")
        place = functools.reduce(lambda found, group: found.setdefault(group, {}), groups, tree)
        place[last] = Annotated[_yaml_type(item), msgspec.Meta(description=item.option.help, ge=item.option.least)]
    return _struct("bridge_yaml", tree)


def _struct(name: str, tree: Mapping[str, Any]) -> type[msgspec.Struct]:
    fields = [
        (key, (_struct(key, kind) if isinstance(kind, dict) else kind) | msgspec.UnsetType, msgspec.UNSET)
        for key, kind in tree.items()
    ]
    return msgspec.defstruct(name, fields, forbid_unknown_fields=True)


def _yaml_type(item: Field) -> Any:
    """Return the type that the option's value has in YAML."""
    if item.is_list:
        return dict[str, str] if get_origin(item.item) is tuple else str | list[str]
    return str if item.item is Path else item.item


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of bridge.yaml, for editors; `bridge/bridge.schema.json` is this, written out."""
    return msgspec.json.schema(config_model())


def _as_json(value: Any) -> Any:
    """Return tuples as lists, so that a comparison meets what JSON gives back."""
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
