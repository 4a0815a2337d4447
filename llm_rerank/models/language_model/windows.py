"""Which parts of a long list are put in order, one after another, so that the best come to its front."""

from __future__ import annotations


def windows_from_back(n: int, window: int, step: int) -> list[tuple[int, int]]:
    """First place and end of each window over n places, from the last ``window`` places to the first.

    A window's best window − step places are in the next window too, so that after all of them the best
    window − step of the whole list stand in front, as far as each window was put in order rightly; what is behind them
    is only roughly in order (Sun et al. 2023, "Is ChatGPT Good at Search?", arXiv 2304.09542, figure 3).

    n: 0 or more. window, step: 1 ≤ step ≤ window. The last window begins at 0 and may overlap the one before by more.
    """
    windows = []
    first = n - window
    while first > 0:
        windows.append((first, first + window))
        first -= step
    return [*windows, (0, min(n, window))] if n else []
