"""A check of durations: no timer can wait for NaN seconds, or for ever."""

LONGEST_S = 1e9  # thirty years


def check_s(name: str, value_s: float, *, zero: bool = True) -> None:
    """Raise ValueError unless a duration is positive (or 0, if `zero`) and at most LONGEST_S. NaN is refused."""
    if not 0 <= value_s <= LONGEST_S or not (value_s or zero):
        raise ValueError(f"{name} must be a positive number of seconds, at most {LONGEST_S:g}, not {value_s!r}")
