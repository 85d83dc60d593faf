"""Whether a structure is whole: a change that an exception cut short leaves it marked, and refused by name from then on."""

from types import TracebackType


class Torn(RuntimeError):
    """An exception cut a change short, and what it was changing cannot be trusted."""


class Intact:
    """A context manager around every change of one structure; changes do not nest.

    The mark is set before the change and taken away after it. So an exception may come at any line, those of this class
    included: either the change has happened and is known to, or `torn` is True.

    Args:
        owner: named by errors.
        remedy: what the error advises.
    """

    def __init__(self, owner: str, remedy: str) -> None:
        self.owner, self.remedy = owner, remedy
        self.torn = False
        self.cause = ""

    def check(self) -> None:
        """Raises Torn unless the structure is whole."""
        if self.torn:
            raise Torn(
                f"{self.owner}: unusable after {self.cause or 'an exception'} in the middle of a change: {self.remedy}"
            )

    def mend(self) -> None:
        """The structure was made anew."""
        self.cause = ""
        self.torn = False

    def __enter__(self) -> None:
        self.check()
        self.torn = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.torn = False
        else:
            self.cause = " ".join(f"{kind.__name__}({error})".split())  # for messages of one line
