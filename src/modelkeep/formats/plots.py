"""Small pictures of an evaluation as SVG: no fonts to install, no browser, the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

SIZE = 320
_LEFT, _TOP, _INNER = 52, 28, 230
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
MOST_LINES = len(_COLOURS)
MOST_CELLS = 12
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#374151}.t{font-size:13px;font-weight:600}"
    ".g{stroke:#e5e7eb}.d{stroke:#9ca3af;stroke-dasharray:4 4}.l{fill:none;stroke-width:2}"
)

Curve = Mapping[str, Sequence[float]]


def curves(title: str, x: str, y: str, lines: Mapping[str, Curve], *, diagonal: bool = False) -> str:
    """Lines in the unit square.

    Args:
        title: Above.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        lines: By name, ``x`` and ``y`` within [0, 1]; the first eight are drawn.
        diagonal: Whether to draw y = x: chance for ROC, truth for calibration.
    """
    parts = _axes(title, x, y, ("0", "0.5", "1"), ("0", "0.5", "1"))
    if diagonal:
        parts.append(f'<line class="d" x1="{_LEFT}" y1="{_TOP + _INNER}" x2="{_LEFT + _INNER}" y2="{_TOP}"/>')
    shown = list(lines.items())[:MOST_LINES]
    for place, (name, line) in enumerate(shown):
        points = " ".join(_point(a, b) for a, b in zip(line["x"], line["y"], strict=True))
        parts.append(f'<polyline class="l" stroke="{_COLOURS[place]}" points="{points}"/>')
        if len(shown) > 1:
            at = _TOP + 14 + 13 * place
            parts.append(f'<text x="{_LEFT + _INNER - 4}" y="{at}" text-anchor="end" fill="{_COLOURS[place]}">')
            parts.append(f"{escape(name[:24])}</text>")
    return _svg(parts)


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The confusion matrix, shaded by the share of each true class; the first twelve classes."""
    shown = min(len(classes), MOST_CELLS)
    cell = _INNER / max(shown, 1)
    parts = [f'<text class="t" x="{_LEFT}" y="18">Confusion: true down, predicted across</text>']
    for row in range(shown):
        total = sum(counts[row]) or 1
        at = _TOP + row * cell
        middle = at + cell / 2 + 4
        parts.append(f'<text x="{_LEFT - 4}" y="{middle:.1f}" text-anchor="end">{escape(classes[row][:8])}</text>')
        across = _LEFT + row * cell + cell / 2
        name = escape(classes[row][: max(3, 24 // shown)])
        parts.append(f'<text x="{across:.1f}" y="{_TOP + _INNER + 16}" text-anchor="middle">{name}</text>')
        for column in range(shown):
            share = counts[row][column] / total
            left = _LEFT + column * cell
            parts.append(
                f'<rect x="{left:.1f}" y="{at:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
                f'fill="#2563eb" fill-opacity="{share:.3f}" stroke="#e5e7eb"/>'
            )
            ink = "#ffffff" if share > 0.5 else "#374151"
            parts.append(
                f'<text x="{left + cell / 2:.1f}" y="{middle:.1f}" text-anchor="middle" style="fill:{ink}">'
            )
            parts.append(f"{counts[row][column]}</text>")
    return _svg(parts)


def residuals(found: Mapping[str, Sequence[float]]) -> str:
    """Actual against predicted by decile of the prediction, with the middle 90 % of what happened."""
    predicted, actual = found["predicted"], found["actual"]
    low = [a + b for a, b in zip(predicted, found["q05"], strict=True)]
    high = [a + b for a, b in zip(predicted, found["q95"], strict=True)]
    least, most = min(*predicted, *low, *actual), max(*predicted, *high, *actual)
    span = (most - least) or 1.0
    ticks = tuple(f"{least + span * share:.4g}" for share in (0.0, 0.5, 1.0))
    parts = _axes("Actual by predicted (deciles)", "predicted", "actual", ticks, ticks)
    parts.append(f'<line class="d" x1="{_LEFT}" y1="{_TOP + _INNER}" x2="{_LEFT + _INNER}" y2="{_TOP}"/>')
    for x, y, below, above in zip(predicted, actual, low, high, strict=True):
        (ax, ay), (_, by), (_, cy) = (_place((x - least) / span, (v - least) / span) for v in (y, below, above))
        parts.append(f'<line stroke="#93c5fd" stroke-width="3" x1="{ax}" y1="{by}" x2="{ax}" y2="{cy}"/>')
        parts.append(f'<circle cx="{ax}" cy="{ay}" r="3.5" fill="#2563eb"/>')
    return _svg(parts)


def of_evaluation(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Every picture an evaluation has data for, by file name."""
    made: dict[str, str] = {}
    if evaluation.get("roc"):
        made["roc.svg"] = curves(
            "ROC", "false positive rate", "true positive rate", evaluation["roc"], diagonal=True
        )
    if evaluation.get("pr"):
        made["precision_recall.svg"] = curves("Precision and recall", "recall", "precision", evaluation["pr"])
    if evaluation.get("calibration"):
        lines = evaluation["calibration"]
        made["calibration.svg"] = curves(
            "Calibration", "stated probability", "observed share", lines, diagonal=True
        )
    told = evaluation.get("confusion")
    if told:
        made["confusion.svg"] = confusion(told["classes"], told["counts"])
    if evaluation.get("residuals"):
        made["residuals.svg"] = residuals(evaluation["residuals"])
    return made


def _axes(title: str, x: str, y: str, across: Sequence[str], up: Sequence[str]) -> list[str]:
    bottom, right = _TOP + _INNER, _LEFT + _INNER
    parts = [f'<text class="t" x="{_LEFT}" y="18">{escape(title)}</text>']
    for share, below, beside in zip((0.0, 0.5, 1.0), across, up, strict=True):
        at_x, at_y = _LEFT + share * _INNER, bottom - share * _INNER
        parts.append(f'<line class="g" x1="{at_x}" y1="{_TOP}" x2="{at_x}" y2="{bottom}"/>')
        parts.append(f'<line class="g" x1="{_LEFT}" y1="{at_y}" x2="{right}" y2="{at_y}"/>')
        parts.append(f'<text x="{at_x}" y="{bottom + 15}" text-anchor="middle">{below}</text>')
        parts.append(f'<text x="{_LEFT - 5}" y="{at_y + 4}" text-anchor="end">{beside}</text>')
    parts.append(f'<text x="{_LEFT + _INNER / 2}" y="{bottom + 33}" text-anchor="middle">{escape(x)}</text>')
    middle = _TOP + _INNER / 2
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    return parts


def _place(x: float, y: float) -> tuple[str, str]:
    return f"{_LEFT + x * _INNER:.1f}", f"{_TOP + (1 - y) * _INNER:.1f}"


def _point(x: float, y: float) -> str:
    return ",".join(_place(x, y))


def _svg(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}">'
    return (
        f'{head}<style>{_STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )
