"""Numbers as a person reads them: short, aligned, with a true minus sign."""

import math

__all__ = ["MISSING", "count", "fixed", "number", "percent", "seconds", "signed"]

MISSING = "–"
_THIN = "\u202f"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: int | None) -> str:
    """A whole number with separators: ``5,574``."""
    return MISSING if value is None else f"{value:,}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as per cent; tiny and nearly whole shares are never rounded to 0 or 100."""
    if share is None or not math.isfinite(share):
        return MISSING
    smallest = 10.0**-digits
    if 0 < share * 100 < smallest / 2:
        return f"<{_THIN}{smallest:.{digits}f}{_THIN}%"
    if 0 < (1 - share) * 100 < smallest / 2:
        return f">{_THIN}{100 - smallest:.{digits}f}{_THIN}%"
    return f"{share * 100:.{digits}f}{_THIN}%"


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, powers of ten where zeros would hide them: ``1.24×10⁻⁵``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{places}f}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_RAISED)}".replace("-", "−")


def fixed(value: float | None, places: int = 3) -> str:
    """So many decimals, for columns whose numbers are compared: ``0.706``."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{places}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def signed(value: float | None, digits: int = 3) -> str:
    """As ``number``, with the sign always there: ``+0.0312``."""
    text = number(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def seconds(value: float | None) -> str:
    """A duration: ``0.4 s``, ``12 s``, ``3 min 07 s``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 9.95:
        return f"{value:.1f}{_THIN}s"
    if value < 99.5:
        return f"{value:.0f}{_THIN}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes:,}{_THIN}min {rest:02d}{_THIN}s"
