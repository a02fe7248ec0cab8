"""A summary of an imagined audit, for any data."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from report_samples import RUN, make_evidence, make_frame

from whence.data.labelled import LabelledData
from whence.report import ReportLimits, summarise


@pytest.fixture
def summary_of() -> Callable[..., dict[str, Any]]:
    def build(
        data: LabelledData, frame: pd.DataFrame | None = None, limits: ReportLimits | None = None
    ) -> dict[str, Any]:
        frame = make_frame(data) if frame is None else frame
        return summarise(data, frame, RUN, evidence=make_evidence(data, frame), limits=limits)

    return build
