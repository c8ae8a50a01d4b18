"""Progress bars of a study: one for its steps, one for the step that runs."""

from __future__ import annotations

from tqdm.auto import tqdm

__all__ = ["Progress"]


class Progress:
    """Makes progress bars.

    show    True or False forces them; None shows them where the output is a terminal

    >>> with Progress(show=False).bar(total=10, text="training", unit="epoch") as bar:
    ...     bar.update(1)
    """

    def __init__(self, show: bool | None = None) -> None:
        self.show = show

    def bar(self, total: int | None = None, text: str = "", unit: str = "it") -> tqdm:
        """A tqdm bar, to be used in a `with`; it is wiped at the end.  `total` None counts without an end."""
        return tqdm(total=total, desc=text or None, unit=unit, leave=False, dynamic_ncols=True,
                    disable=None if self.show is None else not self.show)
