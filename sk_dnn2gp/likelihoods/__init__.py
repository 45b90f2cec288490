"""Likelihoods: pointwise functions of the network's output f and the target y.

Mathematics: :ref:`math-likelihoods` and :ref:`math-predicting`.

A likelihood knows nothing of weights, networks or Gaussian processes, so a new one is a
file of its own here. Each is a small frozen object; every method is a formula of the table under
:ref:`math-likelihoods`:

    ℓ = -log p(y | f)     r = ∂ℓ/∂f     Λ = ∂²ℓ/∂f²     L Lᵀ = Λ     u = L⁺ r  (so L u = r)

Nothing here inverts Λ: the categorical Λ has rank K-1, and every classification Λ vanishes as the
network becomes certain. Softmax and sigmoid are in their log forms, so logits of any size are safe.

A regressor takes any likelihood (``DNN2GPRegressor(likelihood=...)``), one of your own too: the
contract below, whose identities ``tests/likelihood_contract.py`` checks for any object.

Shapes: f (n_samples, n_outputs); y (n_samples, n_outputs), but (n_samples,) integer classes for the
Categorical; ℓ (n_samples,); r, u (n_samples, n_outputs);
Λ, L, V (n_samples, n_outputs, n_outputs). Where a target has several outputs
(``outputs_per_target``), y, E[y] and Var[y] are of the targets, and the others of the outputs.
"""

from .classes import Bernoulli, Categorical
from .contract import Likelihood
from .counts import Poisson
from .gaussian import DiagonalGaussian, Gaussian, HeteroscedasticGaussian
from .ordinal import Ordinal
from .robust import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "Ordinal",
    "Poisson",
    "StudentT",
]
