"""Selection: which runs are meant; the one module that ls, export, verify and view ask."""

from __future__ import annotations

__all__: list[str] = []
