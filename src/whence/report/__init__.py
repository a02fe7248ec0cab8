"""From results to something a person reads: one summary dict, one HTML file.

``summarise`` turns data, suspects and evidence into a JSON-able dict; ``render`` and
``render_explanation`` turn such dicts into self-contained pages. Nothing here computes a score.
"""

from whence.report.attack import attack_content, render_attack
from whence.report.cards import (
    MethodCard,
    ModelCard,
    Notice,
    ReportLimits,
    RunCard,
    SecondsCard,
    SuspicionCard,
)
from whence.report.comparison import render_comparison
from whence.report.content import Content, content_of
from whence.report.evaluation import render_evaluation
from whence.report.html import render, render_explanation
from whence.report.learning import render_learning
from whence.report.mismatch import render_mismatch
from whence.report.sources import render_sources
from whence.report.summary import summarise
from whence.report.treated import render_treated
from whence.report.words import render_words

__all__ = [
    "Content",
    "MethodCard",
    "ModelCard",
    "Notice",
    "ReportLimits",
    "RunCard",
    "SecondsCard",
    "SuspicionCard",
    "attack_content",
    "content_of",
    "render",
    "render_attack",
    "render_comparison",
    "render_evaluation",
    "render_explanation",
    "render_learning",
    "render_mismatch",
    "render_sources",
    "render_treated",
    "render_words",
    "summarise",
]
