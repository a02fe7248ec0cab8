"""What results look like in a notebook: escaped HTML, and figures by plotly with one look."""

from whence.notebook import figures
from whence.notebook.html import card, facts, listing, number, picture, readable
from whence.notebook.tables import attribution_html, fitted_html, frame_html, scores_html, signal_html

__all__ = [
    "attribution_html",
    "card",
    "facts",
    "figures",
    "fitted_html",
    "frame_html",
    "listing",
    "number",
    "picture",
    "readable",
    "scores_html",
    "signal_html",
]
