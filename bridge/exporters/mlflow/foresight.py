"""The notices that a delta brings, known before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.exporters.mlflow.media import plain_tag
from bridge.exporters.mlflow.names import renamed
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.model import Delta

__all__ = ["point_losses"]


def point_losses(delta: Delta, keys: Mapping[str, str], rename: Mapping[str, str]) -> list[Notice]:
    """What MLflow cannot hold of the points and media: names that it refuses, infinite values.

    A name that became what `rename` asks for is no notice.
    """
    fresh = {name for block in delta.blocks for name in block.names}
    notices = [
        Notice(NoticeKind.RENAMED, name, f"as {key}; the map is in bridge/names.json")
        for name, key in renamed(keys).items()
        if name in fresh and key != rename.get(name)
    ]
    notices += [
        Notice(NoticeKind.RENAMED, f"media {tag}", f"as {plain}; the map is in bridge/media.json")
        for tag in dict.fromkeys(event.tag for event in delta.media)
        if (plain := plain_tag(tag)) != tag
    ]
    infinite: dict[str, int] = {}
    for block in delta.blocks:
        counts = (np.isinf(block.values) & block.present).sum(axis=1)
        for name, count in zip(block.names, counts.tolist(), strict=True):
            if count:
                infinite[name] = infinite.get(name, 0) + count
    notices += [
        Notice(NoticeKind.CLIPPED, name, "infinite values are stored as the greatest finite ones", count=count)
        for name, count in infinite.items()
    ]
    return notices
