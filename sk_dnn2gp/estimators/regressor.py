"""DNN2GPRegressor: a network with Gaussian noise as a Gaussian process (MATH 1 to 4, 8)."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import MultiOutputMixin, RegressorMixin, _fit_context
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .._utils.random import torch_generator
from ..likelihoods import Gaussian
from .base import BaseDNN2GP
from .checks import check_target

__all__ = ["DNN2GPRegressor"]


class DNN2GPRegressor(MultiOutputMixin, RegressorMixin, BaseDNN2GP):
    """Regression by a neural network that is a Gaussian process at its trained weights.

    The network is trained to the maximum of the posterior (loss Σ(y-f)²/2σ² + δ/2‖w‖²). There, the
    Laplace approximation with the generalised Gauss-Newton matrix is the posterior of a Gaussian
    process with the neural tangent kernel J Jᵀ/δ (Khan et al. 2019, theorem 1; MATH 3), which gives
    standard deviations, covariances, samples and a marginal likelihood. By default δ and σ are
    chosen by that marginal likelihood inside ``fit``.

    Parameters
    ----------
    net : None, torch Module (class or instance), skorch NeuralNet or FrozenEstimator, default=None
        The network. None builds an MLP. A module is trained with ``solver``; an instance is copied,
        never changed. A skorch net is cloned and trained with its own optimiser, batch size,
        callbacks and device, under this likelihood and prior. A fitted net inside
        :class:`~sklearn.frozen.FrozenEstimator` is used as trained.
    hidden_layer_sizes : sequence of int, default=(50,)
        Width of each hidden layer, for ``net=None``.
    activation : {"tanh", "relu", "sigmoid", "logistic", "erf", "gelu", "identity"}, default="tanh"
        Activation of the hidden layers, for ``net=None``.
    prior_precision : float or "auto", default="auto"
        δ > 0; "auto" chooses it by the evidence.
    noise_std : float or "auto", default="auto"
        σ > 0, in the units of y as the network sees it (standardised if ``normalize_y``).
    prior_groups : {"all", "layer", "feature"}, default="all"
        Which weights share a δ. "layer": each dense layer's, and all biases; "feature": each
        input's in the first layer too, so that the inputs that do not matter are switched off
        (automatic relevance determination). For the default network, with
        ``prior_precision="auto"``, ``solver="gauss-newton"`` and ``posterior="full"``.
    inference : {"laplace", "vi"}, default="laplace"
        How the posterior is found: at the minimum of the loss; or by variational training from
        there (VOGGN for ``posterior="full"``, VOGN for "diag"; theorem 2), whose converged q(w)
        is a Gaussian process too, with the network at its mean (MATH 5). With "vi", "auto" goes on
        to the best evidence lower bound.
    vi_epochs : int, default=200
        Epochs of variational training.
    mc_samples : int, default=4
        Draws of the weights in each variational step.
    posterior : {"full", "diag", "last_layer"}, default="full"
        "full" is exact, by the smaller of weight space and function space. The others are
        approximations: the diagonal of the precision; the last layer's weights only.
    solver : {"gauss-newton", "adam", "lbfgs", "sgd"} or Optimizer class, default="gauss-newton"
        How a network without a skorch net of its own is trained. "gauss-newton" sees the whole data
        in each step, and is the one that reaches a true minimum.
    max_iter : int, default=500
        Gauss-Newton steps, or epochs of the other solvers.
    learning_rate : float, default=0.01
        Of the solvers other than "gauss-newton" and "lbfgs".
    learning_rate_schedule : {"constant", "cosine", "plateau"}, default="constant"
        Schedule of the learning rate.
    batch_size : int or "auto", default="auto"
        Rows in a minibatch; "auto" is min(200, n_samples) for "adam" and "sgd", all rows otherwise
        and in variational training. "gauss-newton" always takes all rows.
    tol : float, default=1e-8
        Gauss-Newton stops at ‖∇loss‖ ≤ tol (1 + abs loss), others when the loss has not fallen by
        this part in ``n_iter_no_change`` epochs.
    n_iter_no_change : int, default=10
        Epochs of patience of the other solvers.
    n_restarts : int or "auto", default="auto"
        Starts from different weights; the best evidence wins. "auto" is 6 where the evidence
        chooses δ or σ with "gauss-newton" (24 where n_samples times weights is at most 10,000;
        most are dropped early), and 1 otherwise.
    evidence_interval : int, default=20
        Epochs between updates of δ and σ by the evidence, with solvers other than "gauss-newton"
        (Immer et al. 2021); at the end the best at the trained weights is taken.
    warm_start : bool, default=False
        Go on from the last fit's weights, δ and σ.
    normalize_y : bool, default=True
        Standardise y inside; everything comes back in the units of y.
    memory_limit : float, default=None
        MiB for matrices and temporary work; None is scikit-learn's ``working_memory``.
    device : str or torch.device, default="cpu"
        Where the network is trained and evaluated.
    random_state : int, RandomState or None, default=None
        Initial weights, minibatches and draws. An int makes everything reproducible.
    verbose : int, default=0
        Level of messages.

    Attributes
    ----------
    module_ : torch.nn.Module
        The trained network, in eval mode.
    net_ : skorch.NeuralNet or None
        The skorch net that trained it; None for a frozen net.
    prior_precisions_ : dict of str to float
        δ of each group of weights ("all"; or the layers or input features, and "biases", whose own
        is ``prior_precision_``).
    prior_precision_, noise_std_ : float
        δ and σ used, given or chosen.
    linear_model_ : LinearModel
        Theorem 1's linear model.
    posterior_ : Posterior
        Its posterior.
    kernel_ : NTKKernel
        J Jᵀ/δ as a scikit-learn kernel.
    log_marginal_likelihood_value_ : float
        Evidence of the training targets, in the units of y.
    effective_dimension_ : float
        γ: how many weights the data determine.
    n_iter_ : int
        Steps (Gauss-Newton) or epochs of the network that was kept.
    gradient_norm_ : float
        ‖∇loss‖ at the trained weights: 0 at a true minimum.
    newton_decrement_ : float
        ∇lossᵀ A⁻¹ ∇loss: how far theorem 1's linear model is from being centred at the network.
    loss_curve_ : list of float
        loss(w) per epoch; with ``inference="vi"`` the mean loss of the draws, prior excluded.
    elbo_curve_ : list of float
        With ``inference="vi"``: the evidence lower bound per epoch, estimated from its draws.
    y_mean_, y_scale_ : ndarray of shape (n_outputs,)
        What y was standardised with.
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    See Also
    --------
    sklearn.gaussian_process.GaussianProcessRegressor : The same with a kernel fixed in advance.

    References
    ----------
    Khan, Immer, Abedi, Korzepa, "Approximate Inference Turns Deep Networks into Gaussian
    Processes", NeurIPS 2019, arXiv 1906.01930. Immer et al., "Scalable Marginal Likelihood
    Estimation for Model Selection in Deep Learning", 2021, arXiv 2104.04975.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> y = np.sin(X[:, 0])
    >>> model = DNN2GPRegressor(
    ...     hidden_layer_sizes=(10,), prior_precision=0.1, noise_std=0.1, random_state=0
    ... ).fit(X, y)
    >>> mean, std = model.predict([[0.5], [6.0]], return_std=True)
    >>> bool(std[1] > 3 * std[0])  # away from the data the error bar grows
    True
    """

    _parameter_constraints: dict = {
        **BaseDNN2GP._parameter_constraints,
        "noise_std": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "normalize_y": ["boolean"],
    }

    def __init__(
        self,
        net: Any = None,
        *,
        hidden_layer_sizes: Any = (50,),
        activation: str = "tanh",
        prior_precision: float | str = "auto",
        noise_std: float | str = "auto",
        prior_groups: str = "all",
        inference: str = "laplace",
        vi_epochs: int = 200,
        mc_samples: int = 4,
        posterior: str = "full",
        solver: Any = "gauss-newton",
        max_iter: int = 500,
        learning_rate: float = 1e-2,
        learning_rate_schedule: str = "constant",
        batch_size: int | str = "auto",
        tol: float = 1e-8,
        n_iter_no_change: int = 10,
        n_restarts: int | str = "auto",
        evidence_interval: int = 20,
        warm_start: bool = False,
        normalize_y: bool = True,
        memory_limit: float | None = None,
        device: Any = "cpu",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.net = net
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.prior_precision = prior_precision
        self.noise_std = noise_std
        self.prior_groups = prior_groups
        self.inference = inference
        self.vi_epochs = vi_epochs
        self.mc_samples = mc_samples
        self.posterior = posterior
        self.solver = solver
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.batch_size = batch_size
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.n_restarts = n_restarts
        self.evidence_interval = evidence_interval
        self.warm_start = warm_start
        self.normalize_y = normalize_y
        self.memory_limit = memory_limit
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> DNN2GPRegressor:
        """Train the network and make it a Gaussian process.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Inputs; more than two dimensions where ``net`` takes them.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each example counts; zero leaves it out.

        Returns
        -------
        self : DNN2GPRegressor

        Raises
        ------
        ValueError
            If the data or an argument can't be used; the message says what to change.
        ConvergenceError
            If training diverged.
        MemoryError
            If the posterior does not fit ``memory_limit``.
        """
        X, y, weight = self._checked_training_set(X, y, sample_weight, multi_output=True)
        y = y.astype(np.float64)
        self._one_dimensional = y.ndim == 1
        targets = self._standardised(y.reshape(len(y), -1), weight)
        sigma = 1.0 if self.noise_std == "auto" else float(self.noise_std)
        if self.warm_start and self.noise_std == "auto" and hasattr(self, "_likelihood"):
            sigma = self.noise_std_
        likelihood = Gaussian(sigma)
        self._fit_network(X, torch.tensor(targets), weight, likelihood, targets.shape[1])
        return self

    def predict(self, X: ArrayLike, return_std: bool = False, return_cov: bool = False) -> Any:
        """Predict the mean of y, and its standard deviation or covariance on request.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        return_std : bool, default=False
            Also return the standard deviation of y: noise and ignorance, √(σ² + V).
        return_cov : bool, default=False
            Also return the joint covariance of y over the rows of X.

        Returns
        -------
        y_mean : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        y_std : ndarray of the same shape, optional
        y_cov : ndarray of shape (n_samples, n_samples), or (…, n_outputs) for 2-D y, optional

        Raises
        ------
        ValueError
            If both ``return_std`` and ``return_cov`` are asked for.
        """
        if return_std and return_cov:
            raise ValueError("At most one of return_std or return_cov can be requested.")
        inputs = self._checked_inputs(X)
        mean = self._shaped(self._outputs(inputs).numpy() * self.y_scale_ + self.y_mean_)
        if return_std:
            return mean, self._shaped(self._total_std(inputs))
        if return_cov:
            return mean, self._joint_covariance(inputs, noise=True)
        return mean

    def predict_std(self, X: ArrayLike, target: str = "y") -> NDArray:
        """Standard deviation of y (noise and ignorance) or of the latent f (ignorance alone).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        target : {"y", "latent"}, default="y"

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "latent"))
        parts = self.predict_uncertainty(X)
        return np.sqrt(parts.total if target == "y" else parts.epistemic)

    def predict_uncertainty(self, X: ArrayLike) -> Bunch:
        """Variance of y split into noise and ignorance: Var[y] = σ² + V_* (MATH 4).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        Bunch
            ``aleatoric``, ``epistemic`` and ``total``, each an ndarray of variances of shape
            (n_samples,) or (n_samples, n_outputs), in the units of y squared.
        """
        V = self._latent_variance(self._checked_inputs(X))
        epistemic = self._shaped(V * self.y_scale_**2)
        noise = np.broadcast_to((self.noise_std_ * self.y_scale_) ** 2, V.shape)
        aleatoric = self._shaped(noise.copy())
        return Bunch(aleatoric=aleatoric, epistemic=epistemic, total=aleatoric + epistemic)

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: Any = 0, target: str = "y"
    ) -> NDArray:
        """Draw joint samples from the predictive distribution.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features) or (n_rows, ...)
        n_samples : int, default=1
        random_state : int, RandomState or None, default=0
        target : {"y", "latent"}, default="y"
            Whether the noise is drawn too.

        Returns
        -------
        ndarray of shape (n_rows, n_samples) or (n_rows, n_outputs, n_samples)

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "latent"))
        inputs = self._checked_inputs(X)
        generator = torch_generator(random_state)
        draws = self.posterior_.sample(inputs, n_samples, generator).cpu() + self._outputs(inputs)
        if target == "y":
            noise = torch.randn(draws.shape, dtype=draws.dtype, generator=generator)
            draws = draws + self.noise_std_ * noise
        in_units = np.moveaxis(draws.numpy() * self.y_scale_ + self.y_mean_, 0, -1)
        return in_units[:, 0] if self._one_dimensional else in_units

    def to_gaussian_process(self) -> GaussianProcessRegressor:
        """Return a fitted scikit-learn Gaussian process that is the same one (theorem 1, model C).

        Its kernel is J Jᵀ/δ, its targets the transformed targets ỹ, its noise σ². Its mean is
        J_* w*, which differs from the network's f by the linearisation; its variances are this
        estimator's. Both in the units of y. With ``inference="vi"`` it is the process at the mean μ
        (MATH 5), whose variances are those of its own exact posterior and not those of q.

        Returns
        -------
        GaussianProcessRegressor

        Raises
        ------
        ValueError
            If the network has several outputs, which scikit-learn's process treats as independent,
            or the posterior is not the full one.
        """
        check_is_fitted(self)
        if len(self.y_scale_) > 1:
            raise ValueError(
                f"The network has {len(self.y_scale_)} outputs that share weights, so their "
                "processes are correlated; scikit-learn's GaussianProcessRegressor takes outputs "
                "as independent. Fit one output at a time to convert it."
            )
        if self.posterior == "diag":
            raise ValueError(
                "posterior='diag' is no Gaussian process with this kernel; use 'full'."
            )
        scale = float(self.y_scale_[0])
        kernel = ConstantKernel(scale**2, "fixed") * self.kernel_
        X = self.linear_model_.X.numpy()
        noise = (scale * self.noise_std_) ** 2 / self._fit_sample_weight
        gp = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
        gp.fit(X.reshape(len(X), -1), scale * self.transformed_targets_)
        # scikit-learn has no public prior mean; the offset is the one normalize_y itself uses.
        gp._y_train_mean = gp._y_train_mean + float(self.y_mean_[0])
        return gp

    @property
    def transformed_targets_(self) -> NDArray:
        """ỹ = J w* - Λ⁻¹ r of theorem 1, in the network's units: (n_samples,) or (…, n_outputs)."""
        check_is_fitted(self)
        return self._shaped(self.linear_model_.transformed_targets().numpy())

    def _standardised(self, y: NDArray, weight: NDArray) -> NDArray:
        self.y_mean_, self.y_scale_ = np.zeros(y.shape[1]), np.ones(y.shape[1])
        if self.normalize_y:
            self.y_mean_ = np.average(y, axis=0, weights=weight)
            scale = np.sqrt(np.average((y - self.y_mean_) ** 2, axis=0, weights=weight))
            constant = scale <= 10 * np.finfo(float).eps * np.abs(self.y_mean_)
            if constant.any():
                warnings.warn(
                    "y is constant" + (" in an output" if y.shape[1] > 1 else "") + ": there is "
                    "nothing to learn, and the prediction is that constant.",
                    UserWarning,
                    stacklevel=3,
                )
            self.y_scale_ = np.where(constant, 1.0, scale)
        return (y - self.y_mean_) / self.y_scale_

    def _in_units(self, outputs: NDArray) -> NDArray:
        return outputs * self.y_scale_[:, None] + self.y_mean_[:, None]

    def _shaped(self, values: NDArray) -> NDArray:
        """One column as a vector where y was one."""
        return values[:, 0] if self._one_dimensional else values

    def _total_std(self, inputs: Tensor) -> NDArray:
        V = self._latent_variance(inputs)
        return np.sqrt(V + self.noise_std_**2) * self.y_scale_

    def _joint_covariance(self, inputs: Tensor, noise: bool) -> NDArray:
        K, n = len(self.y_scale_), len(inputs)
        joint = self.posterior_.joint_covariance(inputs).numpy().reshape(n, K, n, K)
        covariance = np.einsum("ikjk->ijk", joint).copy()
        if noise:
            covariance[np.arange(n), np.arange(n)] += self.noise_std_**2
        return self._squeezed_last(covariance * self.y_scale_**2)

    def _squeezed_last(self, values: NDArray) -> NDArray:
        return values[..., 0] if self._one_dimensional else values

    def _evidence_offset(self, weight: NDArray) -> float:
        """log of the change of units: the density of y is its standardised value's over scale."""
        return -float(weight.sum() * np.log(self.y_scale_).sum())

    def _hyperparameters(self) -> list[float]:
        return [self.prior_precision_, self.noise_std_]

    def _encoded(self, y: NDArray) -> Tensor:
        y = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        return torch.tensor((y - self.y_mean_) / self.y_scale_)

    @property
    def noise_std_(self) -> float:
        """σ used, in the units of y as the network sees it."""
        check_is_fitted(self)
        return cast(Gaussian, self._likelihood).noise_std

    def _latent_variance(self, inputs: Tensor) -> NDArray:
        """diag V_*, of shape (n_samples, n_outputs), in the network's units."""
        return self._latent_covariance(inputs).diagonal(dim1=-2, dim2=-1).numpy().copy()
