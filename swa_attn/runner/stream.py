"""One request as an iterator over its tokens, which ends the request when nobody wants it any more."""

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .request import Completion, Request, RequestState

if TYPE_CHECKING:
    from .engine import Engine


class TokenStream(Iterator[int]):
    """The tokens of one completion as they come, whoever runs the steps that make them.

    Asking for a token runs steps until there is one; other requests advance in them too. After the last one StopIteration
    carries the `Completion`, so `completion = yield from stream` works. `close`, the end of a `with` block, an exception
    of a step and the disappearance of the stream, started or not, end the request.
    """

    def __init__(self, engine: "Engine", request: Request) -> None:
        self._engine, self._request = engine, request
        self._num_given = 0
        self._dropped = weakref.finalize(self, engine._drop, request.request_id)
        self._dropped.atexit = False

    @property
    def request_id(self) -> int:
        return self._request.request_id

    @property
    def completion(self) -> Completion | None:
        """The result, once the request has ended, as far as it got."""
        return self._request.completion() if self._request.state is RequestState.FINISHED else None

    def close(self) -> None:
        """End the request now, if it has not ended. May be called twice."""
        self._dropped()

    def __next__(self) -> int:
        output = self._request.output
        try:
            while self._num_given == len(output) and self._dropped.alive and self.completion is None:
                self._engine.step()
        except BaseException:
            self.close()
            raise
        if not self._dropped.alive or self._num_given == len(output):
            self.close()
            raise StopIteration(self.completion)
        self._num_given += 1
        return output[self._num_given - 1]

    def __enter__(self) -> "TokenStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
