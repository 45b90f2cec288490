"""Noise that a regressor is given: of every row, of every target, or of all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..likelihoods import DiagonalGaussian, Gaussian, Likelihood

__all__ = ["gaussian", "known_noise"]


def gaussian(noise_std: Any, n_targets: int) -> Likelihood:
    """The likelihood of one σ, or of one for each target, in the units that the network sees.

    ValueError if there are neither one nor ``n_targets`` of them.
    """
    if np.ndim(noise_std) == 0:
        return Gaussian(float(noise_std))
    sigma = np.asarray(noise_std, dtype=np.float64)
    if sigma.shape != (n_targets,):
        raise ValueError(
            f"noise_std must be one number or one for each of {n_targets} target(s), got shape "
            f"{sigma.shape}. The known noise of each row goes into fit(X, y, noise_std=...)."
        )
    return DiagonalGaussian(tuple(sigma.tolist()))


def known_noise(
    regressor: Any, noise_std: ArrayLike | None, y: NDArray, weight: NDArray
) -> tuple[float | None, NDArray, NDArray]:
    """Known noise σᵢ of rows as one level, with weights level²/σᵢ² of the same sum.

    ``noise_std`` (n_samples,) in the units of y, as the level. Returns the level (None where no
    noise is given), the weights that turn it into σᵢ, and what log p of each row has more than by
    those: of its normaliser, which the weights count too, s/2 log level²/σᵢ² and that of the level
    as often as the two weights differ (0 over all rows). ValueError if the regressor has another
    noise too, or one is not a positive finite number.
    """
    if noise_std is None:
        return None, weight, np.zeros(len(y))
    automatic = isinstance(regressor.noise_std, str) and regressor.noise_std == "auto"
    if not automatic or regressor.likelihood is not None or y[0].size > 1:
        raise ValueError(
            "fit(noise_std=...) is the known Gaussian noise of each row of one target, and "
            f"goes with noise_std='auto' and likelihood=None; got {regressor.noise_std!r}, "
            f"{regressor.likelihood!r} and {y[0].size} target(s)."
        )
    sigma = np.asarray(noise_std, dtype=np.float64)
    if sigma.shape != (len(y),) or not ((sigma > 0) & np.isfinite(sigma)).all():
        raise ValueError(
            f"noise_std must hold a positive finite number for each of {len(y)} rows, got "
            f"shape {sigma.shape}."
        )
    level2 = weight.sum() / (weight / sigma**2).sum()
    ratio = level2 / sigma**2
    seen = weight * ratio
    more = 0.5 * weight * np.log(ratio) + 0.5 * (seen - weight) * math.log(2.0 * math.pi * level2)
    return math.sqrt(level2), seen, more
