"""The points of a sweep as heat maps: a row of panels a storage, a square each point's share of the limit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError

ADVICE = "pip install 'jllama[plot]'"
PANELS = ("decoding, greedy", "decoding, sampled", "prompts")
INCHES = 0.62  # of a square


def check() -> None:
    """Whether a picture can be drawn.

    Raises:
      JllamaError: matplotlib is missing.
    """
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise JllamaError(f"--sweep draws a picture and needs more packages: {ADVICE}") from None


def panel_of(point: dict[str, Any]) -> str:
    """In which of `PANELS` it stands."""
    if point["test"].startswith("pp"):
        return PANELS[2]
    return PANELS[0] if point["choice"] == "greedy" else PANELS[1]


def across(point: dict[str, Any]) -> int:
    """What the columns of its panel stand for: rows together, or tokens of a prompt."""
    return point["count"] if panel_of(point) == PANELS[2] else point["batch"]


def draw(path: Path, run: dict[str, Any], points: Sequence[dict[str, Any]]) -> None:
    """Writes the picture; its kind is the name's end (`.png`, `.svg`)."""
    from matplotlib.figure import Figure

    storages = list(dict.fromkeys(point["storage"] for point in points))
    panels = [name for name in PANELS if any(panel_of(point) == name for point in points)]
    size = _inches(points, storages, panels)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(storages), len(panels), squeeze=False)
    for storage, line in zip(storages, axes, strict=True):
        for name, place in zip(panels, line, strict=True):
            chosen = [p for p in points if p["storage"] == storage and panel_of(p) == name]
            _panel(place, f"{storage}: {name}", chosen)
    figure.suptitle(f"{run['model']} · {run['dtype']} · {run['device']}: percent of the limit", fontsize=10)
    figure.savefig(path, dpi=120)


def _inches(
    points: Sequence[dict[str, Any]], storages: Sequence[str], panels: Sequence[str]
) -> tuple[float, float]:
    def most(axis: Any, name: str) -> int:
        return len({axis(point) for point in points if panel_of(point) == name})

    wide = sum(most(across, name) + 1.5 for name in panels)
    high = max(most(lambda point: point["depth"], name) for name in panels) + 1.5
    return max(5.0, wide * INCHES), max(2.5, high * INCHES * len(storages) + 0.5)


def _panel(place: Any, title: str, points: Sequence[dict[str, Any]]) -> None:
    """One heat map; a square that was left out or not measured stays white."""
    columns = sorted({across(point) for point in points})
    lines = sorted({point["depth"] for point in points})
    shares = [[float("nan")] * len(columns) for _ in lines]
    for point in points:
        shares[lines.index(point["depth"])][columns.index(across(point))] = point.get(
            "limit_share", float("nan")
        )
    place.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            place.text(x, y, _percent(share), ha="center", va="center", fontsize=8)
    place.set_title(title, fontsize=9)
    place.set_xticks(range(len(columns)), columns, fontsize=8)
    place.set_yticks(range(len(lines)), lines, fontsize=8)
    place.set_xlabel("tokens" if title.endswith(PANELS[2]) else "batch", fontsize=8)
    place.set_ylabel("depth", fontsize=8)


def _percent(share: float) -> str:
    return "" if share != share else f"{share * 100:.0f}"
