"""A fitted estimator as a process of scikit-learn's: its kernel, and what has no such kernel."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from sklearn.utils.validation import check_is_fitted

from ..kernels import NTKKernel
from ..training.source import of_first_half
from .evidence import EvidenceMixin
from .options import options_of

__all__ = ["ProcessMixin", "process_of"]


class ProcessMixin(EvidenceMixin):
    """The process whose kernel is the whole network's. Not for use on its own."""

    module_: Any
    posterior: Any
    posterior_: Any
    prior_groups: Any
    prior_precisions_: dict[str, float]

    def predict_std_bounds(self, X: ArrayLike, tol: float | None = None) -> tuple[NDArray, NDArray]:
        """Standard deviations of f between which the exact ones lie (:ref:`math-low-rank`).

        Of a low-rank posterior, by its certificate: upper is ``predict_std(X, "latent")``, and at
        most ``posterior_.std_factor`` times lower. Of an exact one, that twice.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        tol : float, default=None
            Narrow every variance's bracket by conjugate gradients to this width, in relation to its
            lower end (:ref:`math-refinement`). For few rows: each takes passes over the data.

        Returns
        -------
        lower, upper : ndarray, as ``predict_std(X, "latent")``

        Raises
        ------
        ValueError
            If the posterior is an approximation without a bound.
        """
        inputs = self._checked_inputs(X)
        lower, upper = (
            end.sqrt().cpu().numpy() for end in self._result.variance_bounds(inputs, tol)
        )
        return self._in_latent_units(lower), self._in_latent_units(upper)

    def _in_latent_units(self, std: NDArray) -> NDArray:
        """From the network's units."""
        return std

    @property
    def kernel_(self) -> NTKKernel:
        """The neural tangent kernel J Jᵀ/δ of the trained network, a scikit-learn kernel.

        Of a network with a noise that depends on x, the kernel of its means.

        Raises
        ------
        AttributeError
            If the posterior is not that of the whole network with one δ: its process has another
            kernel.
        """
        check_is_fitted(self)
        self._require_network_process("kernel_", AttributeError)
        network = self.module_
        if self._result.likelihood.outputs_per_target > 1:
            network = of_first_half(network, self.linear_model_.noise_factor.shape[1] // 2)
        return NTKKernel(network, prior_precision=self.prior_precision_)

    def _require_network_process(self, what: str, error: type[Exception] = ValueError) -> None:
        """Refuse what holds for the process of the whole network's tangent kernel alone."""
        self._require_likelihood(what, error)
        if not options_of(self, hasattr(self, "classes_")).posterior.is_network_process:
            raise error(
                f"{what} is of the process whose kernel is the whole network's tangent kernel; "
                f"posterior={self.posterior!r} is another process. Use posterior='full'."
            )
        # The noise's head has a δ of its own, and no part in the kernel of the means.
        if set(self.prior_precisions_) - {"noise"} != {"all"}:
            raise error(
                f"{what} is of one prior precision for all weights, and prior_groups="
                f"{self.prior_groups!r} chose {len(self.prior_precisions_)}."
            )


def process_of(
    kernel: Kernel, X: NDArray, targets: NDArray, noise: NDArray
) -> GaussianProcessRegressor:
    """The process of transformed targets with noise variances (n,), as scikit-learn's own."""
    gp = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    return gp.fit(X.reshape(len(X), -1), targets)
