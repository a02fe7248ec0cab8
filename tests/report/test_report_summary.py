import json
import math

import numpy as np
import pandas as pd
import pytest
from report_samples import RUN, make_data, make_evidence, make_frame

from whence.errors import ConfigError, DataError
from whence.report import ReportLimits, summarise


@pytest.mark.parametrize("kind", ["text", "image", "tabular"])
def test_summary_is_json_with_the_keys_of_format_1(kind, summary_of) -> None:
    summary = summary_of(make_data(kind))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert set(summary) == {
        "format", "whence", "created", "data", "model", "method", "suspects", "warnings", "rows", "histogram",
        "suspicion_histogram", "confusion", "per_class", "duplicates", "seconds",
    }  # fmt: skip
    row = summary["rows"][0]
    assert {"id", "rank", "label", "suggested_label", "suspicion", "is_suspect", "content", "signals", "evidence",
            "duplicates"} <= set(row)  # fmt: skip
    assert row["evidence"][0]["score"] == -0.03 and row["evidence"][0]["content"]["kind"] == kind


def test_counts_agree_with_the_frame(summary_of) -> None:
    data = make_data("text", rows=200, classes=3)
    frame = make_frame(data, flagged=30)
    summary = summary_of(data, frame)
    assert summary["suspects"]["count"] == 30 and summary["suspects"]["share"] == 0.15
    assert sum(sum(row) for row in summary["confusion"]["counts"]) == 30
    assert sum(one["suspects"] for one in summary["per_class"]) == 30
    assert sum(one["rows"] for one in summary["per_class"]) == 200
    assert sum(summary["histogram"]["all"]) == 200 and sum(summary["histogram"]["suspects"]) == 30
    assert sum(summary["suspicion_histogram"]["counts"]) == 200
    given, suggested = frame["label"][0], frame["suggested_label"][0]
    names = summary["confusion"]["classes"]
    same = ((frame["label"] == given) & (frame["suggested_label"] == suggested) & frame["is_suspect"]).sum()
    assert summary["confusion"]["counts"][names.index(given)][names.index(suggested)] == same


def test_shown_rows_are_the_first_suspects_and_the_first_below() -> None:
    data = make_data("text", rows=100)
    frame = make_frame(data, flagged=20).sample(frac=1, random_state=0)
    limits = ReportLimits(suspects=8, runners_up=4)
    summary = summarise(data, frame, RUN, limits=limits)
    assert [row["rank"] for row in summary["rows"]] == [*range(1, 9), *range(21, 25)]
    assert summary["suspects"]["shown"] == 12 and summary["suspects"]["count"] == 20


def test_values_that_are_not_numbers_become_null() -> None:
    data = make_data("text")
    frame = make_frame(data)
    frame.loc[0, "self_influence"], frame.loc[0, "margin"] = np.inf, np.nan
    frame.loc[0, "suggested_label"] = None
    summary = summarise(data, frame, RUN, evidence={frame["id"][0]: [("r1", math.nan)]})
    json.dumps(summary, allow_nan=False)
    row = summary["rows"][0]
    assert row["signals"] == {"self_influence": None, "margin": None} and row["suggested_label"] is None
    assert row["evidence"][0]["score"] is None


def test_evidence_ids_of_the_frame_serve_without_scores() -> None:
    data = make_data("text")
    frame = make_frame(data)
    frame["evidence"] = [["r3", "r4"]] * len(frame)
    row = summarise(data, frame, RUN)["rows"][0]
    assert [(one["id"], one["score"]) for one in row["evidence"]] == [("r3", None), ("r4", None)]


def test_positive_long_tailed_values_get_logarithmic_edges() -> None:
    data = make_data("text", rows=300)
    edges = np.array(summarise(data, make_frame(data), RUN)["histogram"]["edges"])
    np.testing.assert_allclose(edges[1:] / edges[:-1], edges[1] / edges[0], rtol=1e-4)
    frame = make_frame(data).assign(self_influence=np.linspace(1, 2, 300))
    edges = np.array(summarise(data, frame, RUN)["histogram"]["edges"])
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-4)


def test_a_constant_signal_still_has_a_histogram() -> None:
    data = make_data("text")
    histogram = summarise(data, make_frame(data).assign(self_influence=0.0), RUN)["histogram"]
    assert sum(histogram["all"]) == len(data) and np.all(np.diff(histogram["edges"]) > 0)


def test_no_histogram_without_its_column() -> None:
    data = make_data("text")
    assert summarise(data, make_frame(data).drop(columns="self_influence"), RUN)["histogram"] is None


def test_duplicates_form_groups_with_conflicts_first() -> None:
    data = make_data("text", rows=12)
    content = list(data.content)
    content[5] = content[2]
    data = type(data)(ids=data.ids, kind="text", content=content, labels=np.array([0, 1] * 6), classes=data.classes)
    frame = make_frame(data, flagged=12)
    parents = {"r5": "r2", "r7": "r5", "r9": "r1"}  # r7 points into a chain; r7 and r9 are near copies
    frame["duplicate_of"] = [parents.get(name) for name in frame["id"]]
    frame["conflict"] = frame["id"].isin(["r2", "r5", "r7"])
    summary = summarise(data, frame, RUN)
    found = summary["duplicates"]
    assert (found["exact_rows"], found["near_rows"], found["conflicting_rows"]) == (1, 2, 3)
    assert [set(group["ids"]) for group in found["groups"]] == [{"r2", "r5", "r7"}, {"r1", "r9"}]
    rows = {row["id"]: row for row in summary["rows"]}
    assert {(one["id"], one["kind"]) for one in rows["r2"]["duplicates"]} == {("r5", "exact"), ("r7", "near")}
    assert rows["r5"]["conflict"] and rows["r3"]["duplicates"] == []


@pytest.mark.parametrize("name", ["id", "rank", "is_suspect"])
def test_a_missing_column_is_named(name) -> None:
    data = make_data("text")
    with pytest.raises(DataError, match=f"none named {name}. Pass"):
        summarise(data, make_frame(data).drop(columns=name), RUN)


def test_ids_of_other_data_are_refused() -> None:
    data = make_data("text")
    frame = make_frame(data)
    with pytest.raises(DataError, match="got the id 'zzz'"):
        summarise(data, frame, RUN, evidence={frame["id"][0]: [("zzz", -1.0)]})
    frame.loc[0, "id"] = "yyy"
    with pytest.raises(DataError, match="got the id 'yyy'"):
        summarise(data, frame, RUN)


def test_limits_say_what_they_need() -> None:
    with pytest.raises(ConfigError, match="bins must be 2 or more, got 1"):
        ReportLimits(bins=1)


def test_the_frame_is_left_as_it_was() -> None:
    data = make_data("text")
    frame = make_frame(data)
    before = frame.copy(deep=True)
    summarise(data, frame, RUN, evidence=make_evidence(data, frame))
    pd.testing.assert_frame_equal(frame, before)
