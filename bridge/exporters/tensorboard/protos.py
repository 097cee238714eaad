"""Events made with TensorBoard's own protocol buffers: texts, images, hyperparameters. Scalars do not go this way."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bridge.errors import MissingExtraError
from bridge.exporters.tensorboard.records import frame

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "image_record",
    "need_tensorboard",
    "parse_event",
    "session_end_record",
    "session_start_record",
    "text_record",
]


def need_tensorboard() -> None:
    """Raise MissingExtraError where tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise MissingExtraError.of("tensorboard", purpose="--to tensorboard")


def text_record(tag: str, text: str, *, step: int, time: float) -> bytes:
    """A record for the TEXT page, which shows Markdown."""
    from tensorboard.plugins.text import plugin_data_pb2

    content = plugin_data_pb2.TextPluginData(version=0).SerializeToString()
    return _record(tag, _strings([text.encode("utf-8", "replace")], shape=()), _metadata("text", content), step, time)


def image_record(tag: str, image: bytes, *, size: tuple[int, int], description: str, step: int, time: float) -> bytes:
    """A record for the IMAGES page: the picture's file as it is. `size` is width and height in pixels.

    TensorBoard shows the description of a tag's first record.
    """
    from tensorboard.plugins.image import plugin_data_pb2

    content = plugin_data_pb2.ImagePluginData(version=0).SerializeToString()
    strings = [str(size[0]).encode(), str(size[1]).encode(), image]
    metadata = _metadata("images", content, description=description)
    return _record(tag, _strings(strings, shape=(len(strings),)), metadata, step, time)


def session_start_record(values: Mapping[str, bool | float | str], *, group: str, time: float) -> bytes:
    """The start of a session for the HPARAMS page; `group` is what the page shows as the trial's name."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(group_name=group, start_time_secs=time)
    for name, value in values.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, str):
            info.hparams[name].string_value = value
        else:
            info.hparams[name].number_value = value
    data = plugin_data_pb2.HParamsPluginData(version=0, session_start_info=info)
    return _hparams_record("_hparams_/session_start_info", data, time)


def session_end_record(*, success: bool, end: float, time: float) -> bytes:
    """The end of a session for the HPARAMS page; the record itself stands at `time`."""
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=end)
    data = plugin_data_pb2.HParamsPluginData(version=0, session_end_info=info)
    return _hparams_record("_hparams_/session_end_info", data, time)


def parse_event(data: bytes) -> Any:
    """The Event in the data of a record. Raises ValueError for what is none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # published without types
    from tensorboard.compat.proto import event_pb2

    try:
        return event_pb2.Event.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _hparams_record(tag: str, data: Any, time: float) -> bytes:
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    # The page reads the metadata only; the tensor has to be there, and is an empty one.
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=0)])
    nothing = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape)
    return _record(tag, nothing, _metadata("hparams", data.SerializeToString(deterministic=True)), 0, time)


def _metadata(plugin: str, content: bytes, *, description: str = "") -> Any:
    from tensorboard.compat.proto import summary_pb2

    return summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content),
        summary_description=description,
    )


def _strings(values: list[bytes], *, shape: tuple[int, ...]) -> Any:
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    return tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, string_val=values, tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims)
    )


def _record(tag: str, tensor: Any, metadata: Any, step: int, time: float) -> bytes:
    from tensorboard.compat.proto import event_pb2, summary_pb2

    value = summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
    event = event_pb2.Event(wall_time=time, step=step, summary=summary_pb2.Summary(value=[value]))
    return frame(event.SerializeToString(deterministic=True))
