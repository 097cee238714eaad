"""Format judged rows as the tables of docs/reference/performance.md."""

from __future__ import annotations

from typing import Any

__all__ = ["markdown"]

TITLES = {
    "logger_cost": "Logging a row",
    "scan": "Finding runs",
    "source_speed": "Reading run directories",
    "source_memory": "Reading 100 million points",
    "tensorboard_writer": "Into TensorBoard",
    "mlflow_writer": "Into MLflow",
    "live_view": "The live view",
    "whole_process": "Whole commands",
    "many_runs": "Many small runs",
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return one section per benchmark with a table of work, who, seconds, units a second, ratio and remarks."""
    lines: list[str] = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        lines += [f"### {TITLES.get(benchmark, benchmark)}", ""]
        lines += ["| work | who | seconds | a second | times ours | |", "| --- | --- | ---: | ---: | ---: | --- |"]
        before = None
        for row in rows:
            if row["benchmark"] == benchmark:
                lines.append(_line(row, row["work"] if row["work"] != before else ""))
                before = row["work"]
        lines.append("")
    return "\n".join(lines)


def _line(row: dict[str, Any], work: str) -> str:
    ratio = "" if row["ratio"] is None else f"{row['ratio']:,.3g}"
    remarks = [f"promised {row['at_least']:g}"] if "at_least" in row else []
    remarks += [f"promised {row['at_most']:.3g} s at most"] if "at_most" in row else []
    remarks += [f"{row['mib']:.0f} MiB, promised {row['at_most_mib']:g} at most"] if "mib" in row else []
    remarks += [row["note"]] if row.get("note") else []
    rate = f"{row['amount'] / row['seconds']:,.0f} {row['unit']}"
    return f"| {work} | {row['who']} | {row['seconds']:,.3f} | {rate} | {ratio} | {'; '.join(remarks)} |"
