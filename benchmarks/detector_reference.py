"""What rows known to be right add to an audit: `whence audit --reference`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

import detector_sets
import support
from whence.audit import audit

SETS = {"sms": 4_500, "ag_news": 6_000}
PER_CLASS, RATE = 50, 0.1


def referred(report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Average precision of an audit's suspicion, of its class-based influence, and of their ranks added."""
    report.settings |= {"references per class": PER_CLASS, "noise": RATE}
    for name in list(SETS)[: 1 if arguments.tiny else None]:
        rows = detector_sets.load(name, SETS[name], arguments.tiny)
        noisy = rows.noisy(RATE, 0)
        clean = noisy.references(10 if arguments.tiny else PER_CLASS, 0)
        known = rows.data.rows([int(id_) for id_ in clean.ids.tolist()])  # the clean rows lead
        figures = report.figures[name] = {}
        for way, reference in (("rows it trusts", None), ("reference", known)):
            with support.Clock() as clock:
                found = audit(noisy.data, reference=reference).suspects.set_index("id").loc[noisy.data.ids]
            suspicion, harm = found["suspicion"].to_numpy(), -found["class_influence"].to_numpy()
            signals = {"suspicion": suspicion, "class-based": harm, "both": rankdata(suspicion) + rankdata(harm)}
            figures[way] = {
                **{key: float(average_precision_score(noisy.wrong, value)) for key, value in signals.items()},
                "cpu_seconds": clock.cpu,
            }
            print(f"  {name}, {way}: {figures[way]}", flush=True)
        one, other = (figures[way] for way in ("reference", "rows it trusts"))
        report.gate(f"{name}: audit's suspicion with a reference over without", one["suspicion"] - other["suspicion"],
                    low=0)  # fmt: skip
        report.gate(f"{name}: class-based influence on a reference over that on rows it trusts, average precision",
                    one["class-based"] - other["class-based"], low=0)  # fmt: skip
        assert np.isfinite(harm).all()
