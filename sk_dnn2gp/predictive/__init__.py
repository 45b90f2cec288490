"""What a process says of an observation: densities, distribution functions, quantiles.

One object holds the predictive distribution of each target of each row by itself (its marginal;
:ref:`math-predicting`). Pure numpy: nothing here knows of networks or weights.

contract   what every such distribution offers, and the inversion of a distribution function
normal     Gaussian noise under a Gaussian f
scale_mixture  Student's noise, and noise whose size is uncertain
counts     Poisson's
quadrature any likelihood
mixture    several distributions, each with a weight

Shapes: mean, variances, y, densities, quantiles (n_samples, n_outputs).
"""

from .contract import Affine, Predictive
from .counts import PoissonLognormal
from .mixture import Mixture
from .normal import Normal
from .quadrature import Quadrature
from .scale_mixture import NormalLognormal, StudentNormal

__all__ = [
    "Affine",
    "Mixture",
    "Normal",
    "NormalLognormal",
    "PoissonLognormal",
    "Predictive",
    "Quadrature",
    "StudentNormal",
]
