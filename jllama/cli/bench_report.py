"""What `bench.py` prints: shares of ceilings and of other tests, and the table."""

import statistics
from typing import Any


def with_shares(row: dict[str, Any], limits: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds what part of the ceiling measured in this run a test reached, and of the rates of other tests."""
    if "first_token_seconds" in row:
        return row | of_parts(row, rows)
    if "flops_per_second" in row:
        return row | {"matrix_share": row["flops_per_second"] / limits.matrix_flops_per_second}
    row = row | {"read_share": row["bytes_per_second"] / limits.read_bytes_per_second}
    if row["test"].startswith("js"):
        row = row | of_parts(row, rows)
    if not row["sampling"]:
        return row
    same = (other for other in rows if (other["test"], other["batch"]) == (row["test"], row["batch"]))
    return row | {"of_greedy": row["tokens_per_second"] / next(same)["tokens_per_second"]}


def of_parts(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """A rate of an engine, or of rows that must match, of that of `tg` at the same depth; an engine's time of
    that of all prompts by `pp` and all tokens by `tg`. Nothing where those were not measured.
    """
    asked = f"tg{row['test'][2:]}", row["batch"], row["sampling"]
    steps = next((r for r in rows if (r["test"], r["batch"], r["sampling"]) == asked), None)
    if steps is None:
        return {}
    shares = {"of_steps": row["tokens_per_second"] / steps["tokens_per_second"]}
    prompt = next((r for r in rows if r["test"] == f"pp{row['test'].rpartition('d')[2]}"), None)
    if prompt is not None and row["test"].startswith("en"):
        parts = row["batch"] * statistics.median(prompt["seconds"]) + statistics.median(steps["seconds"])
        shares["of_parts"] = statistics.median(row["seconds"]) / parts
    return shares


def as_table(report: dict[str, Any], markdown: bool) -> str:
    """A line about the run, a row a test."""
    head = ["test", "batch", "tok/s", "±", "GB/s", "of read", "TFLOP/s", "of matrix", "ms"]
    tests = report["tests"]
    head += ["first ms", "of tg", "of parts"] if any(row["test"][:2] in ("en", "js") for row in tests) else []
    head += ["tokens", "of greedy"] if any(row["sampling"] for row in tests) else []
    rows = [head, *([cells(row)[name] for name in head] for row in tests)]
    if markdown:
        rows.insert(1, ["---"] * len(head))
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        body = "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return f"{about(report)}\n\n{body}"


def cells(row: dict[str, Any]) -> dict[str, str]:
    """One row of the table, by column; what a test does not measure stays empty."""

    def show(key: str, scale: float, form: str) -> str:
        return form.format(row[key] * scale) if key in row else ""

    return {
        "test": row["test"],
        "batch": str(row["batch"]),
        "tok/s": f"{row['tokens_per_second']:,.1f}",
        "±": f"{row['spread']:.1%}",
        "GB/s": show("bytes_per_second", 1e-9, "{:,.1f}"),
        "of read": show("read_share", 1, "{:.1%}"),
        "TFLOP/s": show("flops_per_second", 1e-12, "{:,.2f}"),
        "of matrix": show("matrix_share", 1, "{:.1%}"),
        "ms": f"{statistics.median(row['seconds']) * 1e3:,.2f}",
        "first ms": show("first_token_seconds", 1e3, "{:,.1f}"),
        "of tg": show("of_steps", 1, "{:.1%}"),
        "of parts": show("of_parts", 1, "{:.2f}"),
        "tokens": row["choice"],
        "of greedy": show("of_greedy", 1, "{:.1%}"),
    }


def about(report: dict[str, Any]) -> str:
    """Everything that holds for the whole run."""
    weights = next(
        (row["weight_bytes_per_step"] for row in report["tests"] if "weight_bytes_per_step" in row), 0
    )
    parts = [
        f"{report['model']} · {report['dtype']} · {weights_of(report)} · {report['device']}",
        f"jllama {report['jllama']} · jax {report['jax']}",
        f"seed {report['seed']} · median of {report['repetitions']} · {report['date']}\nceilings:",
        f"reads {report['read_gb_per_second']:,.1f} GB/s",
        f"products {report['matrix_tflops']:,.2f} TFLOP/s",
        f"weights {weights / 1e9:.3f} GB a step · compiled in {report['compile_seconds']:.1f} s",
        f"first token of 512 in {report['first_token_seconds'] * 1e3:,.1f} ms",
        f"peak memory {report['peak_memory_mib']:,.0f} MiB",
    ]
    return " · ".join(parts).replace("ceilings: ·", "ceilings:")


def weights_of(report: dict[str, Any]) -> str:
    """How the weights were stored, and what asked for it."""
    bits = " and ".join(map(str, report["weight_bits"]))
    return f"weights of {bits} bit ({report['quantize']})" if bits else "weights not quantised"
