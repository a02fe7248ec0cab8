from __future__ import annotations

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest

from whence.data import LabelledData, ReadOptions, from_frame
from whence.data.values import as_number
from whence.errors import DataError

N = 40
AB = ["a", "b"] * (N // 2)
TEXTS = [f"message number {i} about topic {i % 7}" for i in range(N)]


def made(options: ReadOptions | None = None, **columns: object) -> LabelledData:
    return from_frame(pd.DataFrame(columns), options)


def columns_of(data: LabelledData) -> list[str]:
    assert isinstance(data.content, pd.DataFrame)
    return list(data.content.columns)


def test_text_wins_when_it_is_what_the_table_is_about() -> None:
    data = made(text=TEXTS, label=AB)
    assert data.kind == "text" and data.notes == ("text column: text (median 31 characters)",)
    long = [text * 3 for text in TEXTS]
    data = made(body=long, stars=np.arange(N) % 5, label=AB)
    assert data.kind == "text" and "columns not used: stars" in data.notes


def test_short_names_do_not_make_a_table_text() -> None:
    names = [f"Braund, Mr. Owen Harris {i}" for i in range(N)]
    data = made(name=names, age=np.arange(N) * 1.5, sex=["m", "f"] * 20, label=AB)
    assert columns_of(data) == ["age", "sex"]
    assert "column name left out: free text; use --text name to audit it instead" in data.notes


def test_several_text_columns_are_joined() -> None:
    data = made(title=TEXTS, body=[text * 2 for text in TEXTS], label=AB)
    assert data.content[0] == TEXTS[0] + "\n" + TEXTS[0] * 2  # type: ignore[index]
    chosen = made(ReadOptions(text="body,title"), title=TEXTS, body=["x"] * N, label=AB)
    assert chosen.content[0] == "x\n" + TEXTS[0]  # type: ignore[index]


def test_single_column_of_names_is_text() -> None:
    data = made(name=[f"name{i}" for i in range(N)], label=AB)
    assert data.kind == "text" and data.content[3] == "name3"  # type: ignore[index]


def test_text_in_a_script_without_spaces() -> None:
    data = made(text=[f"これは{i}番目の長いメッセージです。" * 4 for i in range(N)], label=AB)
    assert data.kind == "text"


def test_text_override_takes_any_column() -> None:
    data = made(ReadOptions(text="code"), code=["u", "v"] * 20, x=range(N), label=AB)
    assert data.kind == "text" and data.content[:2] == ["u", "v"]  # type: ignore[index]


def test_all_text_empty_is_an_error() -> None:
    with pytest.raises(DataError, match=r"text column 'text' must hold text, got 4 empty rows of 4"):
        made(ReadOptions(text="text"), text=["", None, " ", "\n"], label=list("abab"))


def test_roles_are_taken_out_of_the_features() -> None:
    data = made(
        ReadOptions(label="target", id="key", split="part", reference="sure", drop=("leak",)),
        key=[f"k{i}" for i in range(N)],
        part=["train"] * 30 + ["test"] * 10,
        sure=[True, False] * 20,
        leak=AB,
        x=np.arange(N) * 0.5,
        target=AB,
    )
    assert columns_of(data) == ["x"]
    assert data.ids[7] == "k7" and data.label_name == "target"
    assert data.split is not None and data.split[39] == "test"
    assert data.reference is not None and data.reference.sum() == 20


def test_split_and_id_are_recognised_by_name() -> None:
    data = made(id=[f"r{i}" for i in range(N)], split=["train"] * N, x=np.arange(N) * 0.5, label=AB)
    assert data.ids[0] == "r0" and data.split is not None and columns_of(data) == ["x"]
    assert "ids: column id" in data.notes


def test_id_column_with_repeats() -> None:
    columns = {"id": ["same"] * N, "x": np.arange(N) * 0.5, "label": AB}
    data = made(**columns)
    assert data.ids[1] == "1" and columns_of(data) == ["x"]
    assert "column id left out: repeats or misses values; ids are row numbers" in data.notes
    with pytest.raises(DataError, match=r"ids must be unique, got 'same' 40 times"):
        made(ReadOptions(id="id"), **columns)
    with pytest.raises(DataError, match=r"id column 'k' must name every row, got 1 rows without .*first: row 2"):
        made(ReadOptions(id="k"), k=["a", "b", None, "d"], x=[1, 2, 3, 5], label=list("abab"))


def test_the_index_of_a_filtered_table_names_the_rows() -> None:
    frame = pd.DataFrame({"x": np.arange(N) * 0.5, "label": AB})
    assert from_frame(frame[frame.x > 10]).ids[0] == "21"
    assert from_frame(frame).ids[0] == "0"
    doubled = pd.concat([frame, frame])
    assert from_frame(doubled).ids[N] == str(N)


def test_ids_are_row_numbers_of_the_file_when_rows_are_left_out() -> None:
    labels: list[object] = AB * 5
    labels[3] = None
    data = made(x=np.arange(5 * N) ** 2, label=labels, split=["s"] * (5 * N))
    assert len(data) == 5 * N - 1 and data.ids[3] == "4"
    assert data.split is not None and len(data.split) == len(data)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1, 2], "z": [1, 2]}, r"label column must be known, got the columns x, z\. Name it with --label"),
        (
            {"label": ["a", "b"], "target": ["a", "b"], "x": [1, 2]},
            r"got several candidates: label, target\. Name it with --label",
        ),
    ],
)
def test_the_label_is_guessed_only_if_unmistakable(columns: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(**columns)


def test_label_wins_over_y_and_category() -> None:
    assert made(label=AB, y=np.arange(N) * 0.5, category=["u", "v"] * 20).label_name == "label"
    assert made(Category=AB, x=np.arange(N) * 0.5).label_name == "Category"


def test_a_second_candidate_can_be_dropped() -> None:
    data = made(ReadOptions(drop=("target",)), label=AB, target=AB, x=np.arange(N) * 0.5)
    assert data.label_name == "label"


@pytest.mark.parametrize("part", ["label", "text", "image", "id", "split", "reference", "drop"])
def test_wrong_columns_get_a_suggestion(part: str) -> None:
    value = ("Colour",) if part == "drop" else "Colour"
    frame = pd.DataFrame({"color": ["u", "v"] * 20, "x": range(N), "label": AB})
    with pytest.raises(DataError, match=rf"{part} column must be in the data, got 'Colour'\. Did you mean 'color'\?"):
        from_frame(frame, ReadOptions(**{part: value}))  # type: ignore[arg-type]


def test_wrong_column_without_a_close_one_lists_them() -> None:
    with pytest.raises(DataError, match=r"got 'qqq'\. Use one of: x, label\."):
        made(ReadOptions(label="qqq"), x=[1, 2], label=["a", "b"])


def test_identifiers_constants_and_empty_columns_are_left_out() -> None:
    data = made(
        row=np.arange(1, N + 1),
        user_id=np.random.default_rng(0).permutation(N),
        code=[f"u{i}" for i in range(N)],
        same=["x"] * N,
        one=[1.0] * N,
        none=[None] * N,
        years=np.arange(N)[::-1] * 3,
        label=AB,
    )
    assert columns_of(data) == ["years"]
    notes = "\n".join(data.notes)
    for name, why in [("row", "numbers the rows"), ("user_id", "numbers the rows"), ("same", "always 'x'"),
                      ("code", "another value in every row"), ("one", "always 1"),
                      ("none", "every value is missing")]:  # fmt: skip
        assert f"column {name} left out: {why}" in notes


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"at least one column beside the label .* got none \(column one left out"):
        made(one=[1.0] * N, label=AB)
    with pytest.raises(DataError, match=r"at least one column beside the label that tells rows apart, got none\."):
        made(label=AB)


def test_mixed_columns() -> None:
    stray = [str(i) for i in range(N)]
    stray[5] = "unknown"
    data = made(x=stray, m=[1, "a"] * 20, k=[1.0, "1"] * 20, label=AB)
    frame = data.content
    assert isinstance(frame, pd.DataFrame)
    assert np.isnan(frame["x"][5]) and frame["x"][6] == 6
    assert "column x: 1 values that are not numbers taken as missing ('unknown')" in data.notes
    assert frame["m"].tolist()[:2] == ["1", "a"]
    assert "k" not in frame.columns  # 1.0 and "1" are the same number: constant


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), (" -2.5e3 ", -2500), (".5", 0.5), ("5.", 5), ("22517997598961716", 22517997598961716.0), ("+7", 7)],
)
def test_numbers_in_plain_notation(text: str, number: float) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize(
    "value", ["", "1_000", "1,5", "0x10", "١", "True", "1e", "--1", None, b"1", 1j, [1], "9" * 500]
)
def test_everything_else_is_no_number(value: object) -> None:
    assert np.isnan(as_number(value))


def test_many_strays_make_a_category() -> None:
    codes = [f"{i % 9}.5" if i % 4 else f"V{i % 3}" for i in range(N)]
    frame = made(x=codes, label=AB).content
    assert isinstance(frame, pd.DataFrame) and frame["x"].dtype == object


@pytest.mark.parametrize("value", ["inf", float("-inf"), "1e999"])
def test_infinite_values_are_an_error_that_names_the_column(value: object) -> None:
    values: list[object] = [*range(N)]
    values[7] = value
    message = r"column 'x' must hold finite numbers, got 1 infinite values \(first in row 7\)\. Replace .* --drop x"
    with pytest.raises(DataError, match=message):
        made(x=values, label=AB)


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"column 'x' must hold real numbers, got complex"):
        made(x=np.arange(N) * 1j, label=AB)


def test_many_kinds_of_cells_are_read() -> None:
    day = datetime.date(2020, 1, 1)
    data = made(
        nullable=pd.array([1, None] * 20, dtype="Int64"),
        boolean=pd.array([True, None, False, True] * 10, dtype="boolean"),
        category=pd.Categorical(["u", None] * 10 + ["v", "w"] * 10),
        numbers=pd.Categorical([1, 2] * 20),
        money=[decimal.Decimal("1.5"), decimal.Decimal(2)] * 20,
        when=pd.date_range("2020-01-01", periods=N, freq="37h"),
        lasts=pd.to_timedelta(np.arange(N) * 7, unit="s"),
        period=pd.period_range("2020-01", periods=2, freq="M").tolist() * 20,
        day=[day, None] * 20,
        raw=[b"ab", b"c"] * 20,
        label=AB,
    )
    frame = data.content
    assert isinstance(frame, pd.DataFrame)
    kinds = {name: frame[name].dtype.kind for name in frame.columns}
    assert kinds == {"nullable": "f", "boolean": "f", "category": "O", "numbers": "f", "money": "f", "when": "f",
                     "lasts": "f", "period": "O", "day": "O", "raw": "O"}  # fmt: skip
    assert frame["category"].tolist()[:2] == ["u", None]
    assert frame["when"][1] - frame["when"][0] == pytest.approx(37 / 24)
    assert len(data.fingerprint) == 64


def test_one_hundred_thousand_categories_are_noted_not_refused() -> None:
    rows = 100_002
    codes = [f"c{i}" for i in range(rows - 2)] + ["c0", "c1"]
    data = made(code=codes, x=np.arange(rows) % 10, label=["a", "b"] * (rows // 2))
    assert "column code has 100000 categories" in data.notes and "code" in columns_of(data)


def test_reference_column_values() -> None:
    values = ["yes", "No", "TRUE", "0", "", None, 1.0, False]
    data = made(ReadOptions(reference="r"), r=values, x=[1, 2, 3, 5, 7, 8, 8, 9], label=list("ab") * 4)
    assert data.reference is not None
    assert data.reference.tolist() == [True, False, True, False, False, False, True, False]
    with pytest.raises(DataError, match=r"reference column 'r' must hold 1/0, true/false or yes/no, got 'maybe'"):
        made(ReadOptions(reference="r"), r=["maybe", "1"], x=[1, 3], label=["a", "b"])


def test_column_names_must_be_unique_text() -> None:
    with pytest.raises(DataError, match=r"column names must be unique, got x more than once"):
        from_frame(pd.DataFrame([[1, 2, "a"]], columns=["x", "x", "label"]))
    with pytest.raises(DataError, match=r"column names must be text, got 0, 1"):
        from_frame(pd.DataFrame([[1, "a"], [2, "b"]]))


def test_the_table_of_the_user_stays_as_it_was() -> None:
    frame = pd.DataFrame({"x": ["1", "?"] * 20, "c": ["u", " v "] * 20, "label": AB})
    copy = frame.copy(deep=True)
    from_frame(frame)
    pd.testing.assert_frame_equal(frame, copy)
