"""The live view: what run directories say at this moment, for the user interfaces of TensorBoard and MLflow."""

from bridge.live.core import READ_SECONDS, LiveOptions, LiveRun, LiveRuns, RunSet, digest_id

__all__ = ["READ_SECONDS", "LiveOptions", "LiveRun", "LiveRuns", "RunSet", "digest_id"]
