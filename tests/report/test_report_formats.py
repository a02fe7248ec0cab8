import pytest

from whence.report.formats import count, number, percent, seconds, signed

THIN = "\u202f"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.03124, "0.0312"), (-0.5, "−0.500"), (12.34, "12.3"), (5574.0, "5,574"), (1.24e-5, "1.24×10⁻⁵"),
     (-2e7, "−2.00×10⁷"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)  # fmt: skip
def test_numbers(value, text) -> None:
    assert number(value) == text


def test_signs_are_always_there() -> None:
    assert (signed(0.0312), signed(-0.0312), signed(0.0), signed(None)) == ("+0.0312", "−0.0312", "0", "–")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0919, "9.2 %"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.0002, "< 0.1 %"), (0.9999, "> 99.9 %"), (None, "–")],
)
def test_shares_never_round_to_nothing_or_everything(share, text) -> None:
    assert percent(share) == text.replace(" ", THIN)


@pytest.mark.parametrize(("value", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (187.0, "3 min 07 s"), (None, "–")])
def test_durations(value, text) -> None:
    assert seconds(value) == text.replace(" ", THIN, 1).replace(" s", f"{THIN}s")


def test_counts() -> None:
    assert (count(5574), count(None)) == ("5,574", "–")
