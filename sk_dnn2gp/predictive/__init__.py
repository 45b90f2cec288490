"""What a process says of an observation: densities, distribution functions, quantiles.

One object holds the predictive distribution of each target of each row by itself (its marginal;
:ref:`math-predicting`). Pure numpy: nothing here knows of networks or weights.

contract   what every such distribution offers, and the inversion of a distribution function
normal     Gaussian noise under a Gaussian f

Shapes: mean, variances, y, densities, quantiles (n_samples, n_outputs).
"""

from .contract import Affine, Predictive
from .normal import Normal

__all__ = ["Affine", "Normal", "Predictive"]
