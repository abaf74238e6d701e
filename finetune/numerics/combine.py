"""How two reward models make one score: Llama 2's rule (section 3.2.3, "Reinforcement learning with human feedback").

Legend: N answers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def combine(
    helpfulness_N: NDArray[np.float64],
    safety_N: NDArray[np.float64],
    is_safety_N: NDArray[np.bool_],
    threshold: float,
) -> NDArray[np.float64]:
    """The safety score where the prompt is marked as safety or the score is low; the helpfulness score elsewhere.

    helpfulness_N, safety_N: raw scores (logits). threshold: between 0 and 1, on sigmoid(safety). Returns raw scores;
    Llama 2 whitens them afterwards, over the batch. The paper's threshold of 0.15 filters with a precision of 0.89.
    """
    # sigmoid(s) < t, said in logits: no sigmoid of a large score is rounded to 1.
    is_unsafe_N = safety_N < math.log(threshold / (1.0 - threshold))
    return np.where(is_safety_N | is_unsafe_N, safety_N, helpfulness_N)
