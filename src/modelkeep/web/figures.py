"""Figures as Plotly's own JSON (plotly.com/javascript/reference), so pages and notebooks show the same ones.

A colour written ``var:NAME`` is one of the style sheet; the page's script puts in its value, light or dark.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]

_COLOURS = ("var:stable", "var:canary", "var:shadow", "var:good", "var:bad", "var:warn")


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its interval.

    Attributes:
        at: Seconds since 1970 UTC, or a version's number.
        value: The value.
        low: Lower bound; None when unknown.
        high: Upper bound; None when unknown.
        group: What it belongs to, such as ``v3 stable``.
    """

    at: float
    value: float
    low: float | None = None
    high: float | None = None
    group: str = ""


def moment(at: float) -> str:
    """Seconds since 1970 as the text Plotly takes for a date, UTC."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def over_time(points: Sequence[Point], *, name: str, reference: float | None = None) -> Figure:
    """A metric per window with its intervals, one trace per group; ``reference`` is a line across."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    data = [
        _trace(group, [moment(p.at) for p in found], found, _COLOURS[index % len(_COLOURS)])
        for index, (group, found) in enumerate(groups.items())
    ]
    layout = _layout(y=name)
    layout["showlegend"] = len(groups) > 1
    if reference is not None:
        layout["shapes"] = [_across(reference)]
        layout["annotations"] = [_note(f"at training {reference:.3f}", reference)]
    return {"data": data, "layout": layout}


def over_versions(points: Sequence[Point], *, name: str) -> Figure:
    """The metric of each version on its own held-out rows, with its interval."""
    layout = _layout(y=name)
    layout["xaxis"] |= {"type": "category", "showgrid": False}
    return {"data": [_trace("", [f"v{p.at:.0f}" for p in points], points, "var:stable")], "layout": layout}


def drift(marks: Sequence[tuple[float, str, float]]) -> Figure:
    """Which columns drifted when: ``(time, column, size)`` with size in [0, 1] as the mark's area."""
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [moment(at) for at, _, _ in marks],
        "y": [column for _, column, _ in marks],
        "marker": {
            "size": [7 + 15 * min(max(size, 0.0), 1.0) ** 0.5 for _, _, size in marks],
            "color": "var:canary",
            "opacity": 0.75,
            "line": {"width": 0},
        },
        "customdata": [size for _, _, size in marks],
        "hovertemplate": "%{y}<br>%{x|%Y-%m-%d %H:%M}<br>distance %{customdata:.3f}<extra></extra>",
    }
    layout = _layout(y="")
    layout["yaxis"] |= {"type": "category", "automargin": True}
    return {"data": [trace], "layout": layout}


def curve(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    diagonal: bool,
    marks: bool = False,
) -> Figure:
    """ROC, precision-recall and calibration curves on the unit square; one line per class."""
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if marks else "lines",
            "name": name,
            "x": list(xs),
            "y": list(ys),
            "line": {"color": _COLOURS[index % len(_COLOURS)], "width": 2},
            "marker": {"size": 6},
            "hovertemplate": f"{x} %{{x:.3f}}<br>{y} %{{y:.3f}}<extra>{name}</extra>",
        }
        for index, (name, (xs, ys)) in enumerate(lines.items())
    ]
    layout = _layout(y=y)
    layout["xaxis"] |= {"title": {"text": x, "standoff": 8}, "range": [0, 1]}
    layout["yaxis"] |= {"range": [0, 1.02]}
    layout["margin"] |= {"b": 44}
    layout["hovermode"] = "closest"
    layout["showlegend"] = len(data) > 1
    if diagonal:
        line = {"color": "var:quiet", "width": 1, "dash": "dot"}
        layout["shapes"] = [{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": line}]
    return {"data": data, "layout": layout}


def residuals(said: Mapping[str, Sequence[float]]) -> Figure:
    """Actual minus predicted by decile of the prediction: median, and the band from the 5 to the 95 % quantile."""
    x = list(said["predicted"])
    edge = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "hoverinfo": "skip"}
    data = [
        {**edge, "y": list(said["q05"])},
        {**edge, "y": list(said["q95"]), "fill": "tonexty", "fillcolor": "var:link-back"},
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": x,
            "y": list(said["q50"]),
            "line": {"color": "var:stable", "width": 1.6},
            "hovertemplate": "predicted %{x:.4g}<br>median %{y:.4g}<extra></extra>",
        },
    ]
    layout = _layout(y="actual minus predicted")
    layout["xaxis"] |= {"title": {"text": "predicted", "standoff": 8}}
    layout["margin"] |= {"b": 44}
    layout["hovermode"] = "closest"
    layout["shapes"] = [_across(0.0)]
    return {"data": data, "layout": layout}


def _trace(name: str, x: Sequence[str], points: Sequence[Point], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": [p.value for p in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [0.0 if p.high is None else max(p.high - p.value, 0.0) for p in points],
            "arrayminus": [0.0 if p.low is None else max(p.value - p.low, 0.0) for p in points],
            "thickness": 1,
            "width": 0,
            "color": colour,
        },
        "line": {"color": colour, "width": 1.6},
        "marker": {"color": colour, "size": 5},
        "hovertemplate": "%{y:.4f}<extra>" + name + "</extra>",
    }


def _across(y: float) -> dict[str, Any]:
    line = {"color": "var:quiet", "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def _note(text: str, y: float) -> dict[str, Any]:
    place = {"xref": "paper", "x": 1, "xanchor": "right", "y": y, "yanchor": "bottom"}
    return {"text": text, "showarrow": False, "font": {"size": 11, "color": "var:quiet"}, **place}


def _layout(*, y: str) -> dict[str, Any]:
    axis = {"gridcolor": "var:line", "linecolor": "var:line", "zeroline": False, "automargin": True}
    return {
        "margin": {"l": 52, "r": 12, "t": 10, "b": 34},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "ui-sans-serif, system-ui, sans-serif", "size": 12, "color": "var:quiet"},
        "xaxis": {**axis, "showgrid": False},
        "yaxis": {**axis, "title": {"text": y, "standoff": 8}},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "var:card", "bordercolor": "var:line", "font": {"color": "var:text"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "showlegend": False,
    }
