"""The tests, and the tools that run the project as its users do: benchmarks, mutants, torture."""

from __future__ import annotations

import signal

# What was started in the background, or by nohup, ignores these, and so would all that it starts: the tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
