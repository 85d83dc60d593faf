"""All kernels, which of them the cuda backend runs, and what is predicted for all of them."""

from collections.abc import Callable, Iterable

from bench.gpu.cases import Case, all_cases

from .card import CARDS, Card
from .decode import sm80_decode, sm90_decode
from .prefill import sm80_prefill, sm80_swa_prefill, sm90_prefill, sm90_swa_prefill
from .work import Prediction, Work, predict

# In the order in which the backend asks them: the first one that takes a case runs (csrc/cuda/kernels/*_dims.cuh).
KERNELS: tuple[Callable[[Case, Card], Work | None], ...] = (
    sm90_swa_prefill,
    sm90_prefill,
    sm80_swa_prefill,
    sm80_prefill,
    sm90_decode,
    sm80_decode,
)


def works(case: Case, card: Card) -> list[Work]:
    """Of the kernels that take the case, in their order."""
    return [work for kernel in KERNELS if (work := kernel(case, card))]


def chosen(case: Case, card: Card) -> Work | None:
    """Of the kernel that the cuda backend runs; None if the model has none."""
    return next(iter(works(case, card)), None)


def predictions(cards: Iterable[Card] = CARDS) -> list[Prediction]:
    """Every kernel that takes a case, for every case, on every card."""
    return [predict(work, case, card) for card in cards for case in all_cases() for work in works(case, card)]
