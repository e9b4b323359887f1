"""Points that move with depth, as a picture that plays in a notebook and on a page.

It needs no kernel and nothing from the network. Where no script runs, the still picture shows where
every point starts and the way of some.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["MovingPoints", "moving_points"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
ON_DARK = ("#56B4E9", "#FF9A4D", "#2BCFA0", "#E6A8CC")
"""The same four hues, light enough for a dark page."""
_SIZE, _EDGE, _TRAILS = 400, 12, 24


@dataclass(frozen=True)
class MovingPoints:
    """An animation that a notebook shows; ``markup`` is its HTML."""

    markup: str

    def _repr_html_(self) -> str:
        return self.markup


def moving_points(path: Tensor, groups: Sequence[int] | Tensor, *, alt: str) -> MovingPoints:
    """Return an animation of points in the plane, from depth 0 to depth 1.

    Args:
        path: the states at equally spaced depths, shape ``(depths, points, 2)``.
        groups: for each point a number from 0 to 3, its colour.
        alt: what the animation shows, for those who do not see it.

    Raises:
        ValueError: for a path of another shape, or groups that do not fit it.

    Example:
        >>> import torch
        >>> path = torch.tensor([[[0.0, 0.0]], [[1.0, 2.0]]])
        >>> moving_points(path, [0], alt="One point moves to the right and up.").markup[:25]
        '<div class="moving-points'
        >>> moving_points(path[0], [0], alt="")
        Traceback (most recent call last):
        ...
        ValueError: path must have shape (depths, points, 2); got (1, 2)
    """
    if path.ndim != 3 or path.shape[2] != 2 or len(path) < 2:
        raise ValueError(f"path must have shape (depths, points, 2); got {tuple(path.shape)}")
    kinds = [int(kind) for kind in groups]
    if len(kinds) != path.shape[1] or not set(kinds) <= set(range(len(COLOURS))):
        raise ValueError(
            f"groups must be {path.shape[1]} numbers from 0 to {len(COLOURS) - 1}; got {groups!r}"
        )
    places = _pixels(path.detach().cpu())
    trails = "".join(_trail(places, kinds, n) for n in range(0, len(kinds), _every(len(kinds))))
    dots = "".join(_dot(point, kind) for point, kind in zip(places[0], kinds, strict=True))
    return MovingPoints(
        _PAGE.format(
            alt=html.escape(alt), dark=_dark(), size=_SIZE, trails=trails, dots=dots,
            steps=len(places) - 1, places=json.dumps(places, separators=(",", ":")),
        )
    )  # fmt: skip


def _pixels(path: Tensor) -> list[list[list[int]]]:
    """Fit all states into the picture with one scale; the second coordinate points up."""
    low, high = path.amin((0, 1)), path.amax((0, 1))
    scale = (_SIZE - 2 * _EDGE) / (high - low).max().clamp_min(1e-12)
    shifted = (path - (low + high) / 2) * scale
    shifted[..., 1] *= -1
    pixels: list[list[list[int]]] = (shifted + _SIZE / 2).round().int().tolist()
    return pixels


def _every(points: int) -> int:
    return max(1, points // _TRAILS)


def _trail(places: list[list[list[int]]], kinds: list[int], n: int) -> str:
    points = " ".join(f"{state[n][0]},{state[n][1]}" for state in places)
    return f'<polyline points="{points}" stroke="{COLOURS[kinds[n]]}" class="kind{kinds[n]}"/>'


def _dot(point: list[int], kind: int) -> str:
    """Draw a point; groups differ in shape too, by how round the square is."""
    x, y = point
    return (
        f'<rect x="{x - 4}" y="{y - 4}" width="8" height="8" rx="{4 if kind % 2 == 0 else 1}" '
        f'fill="{COLOURS[kind]}" class="kind{kind}"/>'
    )


def _dark() -> str:
    """Return the rules for a dark page; they win over the attributes of the shapes."""
    own = 'html[data-theme="dark"] .moving-points'
    rules = [f"{own} g{{opacity:1}}"]
    for kind, colour in enumerate(ON_DARK):
        rules.append(f"{own} rect.kind{kind}{{fill:{colour}}}")
        rules.append(f"{own} polyline.kind{kind}{{stroke:{colour};opacity:0.6}}")
    return "".join(rules)


_PAGE = """<div class="moving-points" style="max-width:26rem;margin:0 auto">
<style>{dark}</style>
<svg viewBox="0 0 {size} {size}" role="img" aria-label="{alt}" style="width:100%;display:block">
<g fill="none" stroke-width="1" opacity="0.35">{trails}</g><g>{dots}</g></svg>
<div style="display:flex;gap:0.8rem;align-items:center">
<button type="button">Play</button>
<label style="display:flex;gap:0.5rem;flex:1;margin:0">Depth
<input type="range" min="0" max="1" step="0.01" value="0" style="flex:1;min-width:6rem">
</label><output>0.00</output></div>
<script>(() => {{
const own = document.currentScript.parentNode, places = {places}, steps = {steps};
const dots = own.querySelectorAll("rect"), slider = own.querySelector("input");
function show() {{
  const at = slider.value * steps, n = Math.min(Math.floor(at), steps - 1), part = at - n;
  dots.forEach((dot, k) => ["x", "y"].forEach((side, d) => dot.setAttribute(side,
    places[n][k][d] * (1 - part) + places[n + 1][k][d] * part - 4)));
  own.querySelector("output").textContent = Number(slider.value).toFixed(2);
}}
let playing = 0;
slider.addEventListener("input", () => {{ cancelAnimationFrame(playing); show(); }});
own.querySelector("button").addEventListener("click", () => {{
  cancelAnimationFrame(playing);
  const began = performance.now();
  function frame(now) {{
    slider.value = Math.min((now - began) / 4000, 1);
    show();
    if (slider.value < 1) playing = requestAnimationFrame(frame);
  }}
  playing = requestAnimationFrame(frame);
}});
}})();</script></div>"""
