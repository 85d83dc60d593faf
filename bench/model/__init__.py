"""What each CUDA kernel should take on a card, from counting its schedule: predictions to hold measurements against.

    python -m bench.model [--json bench/results/model_h100_h200.json]

No GPU needed, and nothing here has been measured: ceilings are assumptions (`CARDS`), unless `measured_card` makes a card
of those of a run. Per case and kernel the model counts what the schedule does - tiles, segments, CTAs and how they follow
one another - and gives two times (`predict`): `overlapped`, everything that may run at the same time does; `serial`, an
SM's parts take turns. A kernel should be measured between them; above `serial` something waits that the schedule does not
show.
"""

from .card import CARDS, Card, measured_card
from .kernels import KERNELS, chosen, predictions
from .work import Prediction, Work, predict

__all__ = ["CARDS", "KERNELS", "Card", "Prediction", "Work", "chosen", "measured_card", "predict", "predictions"]
