"""DNN2GPRegressor: a network with Gaussian noise as a Gaussian process.

Mathematics: :ref:`math-objective` to :ref:`math-predicting`, :ref:`math-choosing`.
"""

from __future__ import annotations

import os
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import MultiOutputMixin, RegressorMixin, _fit_context
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .._utils.warn import warn
from ..likelihoods import Gaussian, HeteroscedasticGaussian, Likelihood
from .base import BaseDNN2GP
from .noise import gaussian, known_noise
from .options import is_heteroscedastic, options_of
from .process import process_of
from .regression import _RegressionPredictions

__all__ = ["DNN2GPRegressor"]


class DNN2GPRegressor(MultiOutputMixin, RegressorMixin, _RegressionPredictions):
    """Regression by a neural network that is a Gaussian process at its trained weights.

    The network is trained to the maximum of the posterior (loss Σ(y-f)²/2σ² + δ/2‖w‖²). There, the
    Laplace approximation with the generalised Gauss-Newton matrix is the posterior of a Gaussian
    process with the neural tangent kernel J Jᵀ/δ (Khan et al. 2019, theorem 1;
    :ref:`math-laplace`), which gives standard deviations, covariances, samples and a marginal
    likelihood. By default δ and σ are chosen by that marginal likelihood inside ``fit``.

    Parameters
    ----------
    net : None, torch Module (class or instance), skorch NeuralNet or FrozenEstimator, default=None
        The network. None builds an MLP whose first layer standardises its inputs. A module is
        trained with ``solver``; an instance is copied, never changed, and training begins at its
        weights (those that need no gradient stay). A skorch net is cloned and trained with its own
        optimiser, batch size, callbacks and device, under this likelihood and prior; a validation
        split that it asks for, or that its callbacks need, is kept, while the posterior is of all
        rows. A fitted net inside :class:`~sklearn.frozen.FrozenEstimator` is used as trained, in
        its own units: ``normalize_y`` is then left aside.
    hidden_layer_sizes : sequence of int, default=(50,)
        Width of each hidden layer, for ``net=None``.
    activation : {"tanh", "relu", "sigmoid", "logistic", "erf", "gelu", "identity"}, default="tanh"
        Activation of the hidden layers, for ``net=None``.
    prior_precision : float or "auto", default="auto"
        δ > 0; "auto" chooses it by the evidence (:ref:`math-search`).
    prior_groups : {"all", "layer", "feature"} or dict, default="all"
        Which weights share a δ (:ref:`math-groups`). "layer": each layer's, and all biases;
        "feature": each input's in the first layer too, so that the inputs that do not matter are
        switched off (automatic relevance determination); a dict names groups of named parameters.
        Needs ``prior_precision="auto"``, ``posterior="full"`` and a solver that sees all examples.
    noise_std : float, array-like of shape (n_outputs,), "auto" or "heteroscedastic", default="auto"
        σ > 0, in the units of y as the network sees it (standardised if ``normalize_y``); an array
        has one for each target, "auto" finds one for all, relative to each target's spread.
        "heteroscedastic": the size of the noise depends on x (:ref:`math-heteroscedastic`). The
        network has two outputs per target, the means of all targets and then their log noise; with
        ``prior_precision="auto"`` the latter's weights have a δ of their own, so that the evidence
        says how far the noise varies.
    likelihood : Likelihood or None, default=None
        How y is distributed given the network's output f. None is the Gaussian of ``noise_std``; an
        object of ``sk_dnn2gp.likelihoods`` otherwise, as ``Poisson()`` for counts (f is then the
        logarithm of the rate), ``StudentT(scale)`` for outliers, ``Ordinal()`` for ordered
        categories, or one of your own. It has its own parameters: leave ``noise_std`` as it is.
    inference : {"laplace", "vi", "swag"} or object, default="laplace"
        How the posterior is found: at the minimum of the loss; or by variational training from
        there (:class:`~sk_dnn2gp.inference.Variational`), whose converged q(w) is a Gaussian
        process too, with the network at its mean (:ref:`math-variational`); or from the weights
        along SGD at a constant rate (:class:`~sk_dnn2gp.inference.SWAG`), without an evidence.
    posterior : {"auto", "full", "diag", "last_layer", "independent"} or object, default="auto"
        "full" is exact, by the smaller of weight space and function space, and "auto" is "full"
        where it fits the memory. The others are approximations: the diagonal of the precision; the
        last layer's weights only; outputs taken as independent. Objects have settings, as
        ``SubsetOfData(1000)`` and ``SubsetOfWeights([...])`` of :mod:`sk_dnn2gp.posterior`.
    solver : {"auto", "newton-cg", "gauss-newton", "lbfgs", "adam", "sgd"}, torch Optimizer class \
            or object, default="auto"
        How a network without a skorch net of its own is trained; "auto" by counted operations:
        Newton steps on all examples where a factor is cheap, whole passes beyond, minibatches at
        last. Settings live in the objects of :mod:`sk_dnn2gp.training`, and are reached as
        ``solver__max_iter``.
    n_restarts : int or "auto", default="auto"
        Starts from different weights; the best evidence wins. "auto" is 1 to 6, by the operations
        that a start takes, where the evidence chooses δ or σ; and 1 otherwise, for skorch nets and
        for instances of a module.
    warm_start : bool, default=False
        Go on from the last fit's weights, δ and σ.
    normalize_y : bool, default=True
        Standardise y inside; everything comes back in the units of y. Of counts, the mean is taken
        as the rate at f = 0.
    device : str or torch.device, default="cpu"
        Where the network is trained and evaluated.
    random_state : int, RandomState or None, default=None
        Initial weights, minibatches and draws. An int makes everything reproducible.
    verbose : int, default=0
        1 prints a line for each stage with its time and evidence, and a bar over long predictions.

    Attributes
    ----------
    module_ : torch.nn.Module
        The trained network, in eval mode.
    net_ : skorch.NeuralNet
        A fitted skorch net around it: the one that trained it, or one with the same history.
    solver_ : str
        What trained it.
    converged_ : bool
        Whether training ended at a minimum of the loss.
    prior_precisions_ : dict of str to float
        δ of each group of weights ("all"; or the layers or input features, and "biases", whose own
        is ``prior_precision_``; and "noise", of the weights of a varying noise alone).
    prior_precision_, noise_std_ : float
        δ and σ used, given or chosen; no σ where there is no single one.
    linear_model_ : LinearModel
        Theorem 1's linear model.
    posterior_ : Posterior
        Its posterior.
    kernel_ : NTKKernel
        J Jᵀ/δ as a scikit-learn kernel.
    log_marginal_likelihood_value_ : float
        Evidence of the training targets, in the units of y; nan with ``inference="swag"``.
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
        "noise_std": [
            StrOptions({"auto", "heteroscedastic"}),
            Interval(Real, 0, None, closed="neither"),
            "array-like",
        ],
        "likelihood": [Likelihood, None],
        "normalize_y": ["boolean"],
    }

    def __init__(
        self,
        net: Any = None,
        *,
        hidden_layer_sizes: Any = (50,),
        activation: str = "tanh",
        prior_precision: float | str = "auto",
        prior_groups: Any = "all",
        noise_std: float | str = "auto",
        likelihood: Likelihood | None = None,
        inference: Any = "laplace",
        posterior: Any = "auto",
        solver: Any = "auto",
        n_restarts: int | str = "auto",
        warm_start: bool = False,
        normalize_y: bool = True,
        device: Any = "cpu",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.net = net
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.prior_precision = prior_precision
        self.prior_groups = prior_groups
        self.noise_std = noise_std
        self.likelihood = likelihood
        self.inference = inference
        self.posterior = posterior
        self.solver = solver
        self.n_restarts = n_restarts
        self.warm_start = warm_start
        self.normalize_y = normalize_y
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        noise_std: ArrayLike | None = None,
        *,
        checkpoint: str | os.PathLike | None = None,
    ) -> DNN2GPRegressor:
        """Train the network and make it a Gaussian process.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Inputs; more than two dimensions where ``net`` takes them. A ``numpy.memmap``, a torch
            or skorch Dataset and a DataLoader are read a part at a time, and stay where they are:
            see the guide's page on large data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets. None takes those of a Dataset's items.
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each example counts; zero leaves it out.
        noise_std : array-like of shape (n_samples,), default=None
            The known standard deviation of each row's noise, in the units of y, of one target; the
            estimator's own ``noise_std`` is then left at "auto". A row to be predicted has the
            noise of the mean precision. Standard deviations that are known up to a factor are
            ``sample_weight=1/noise_std**2`` (scaled to a mean of one), and "auto" finds the factor.
        checkpoint : str or path-like, default=None
            A file that keeps what the fit has done so far. A fit that was killed goes on from it
            when it is called again with the same data, parameters and versions: with one thread to
            the same bits. It is taken away when the fit is done. Needs a whole ``random_state``.

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
        with self._fitting(X, y, sample_weight) as progress:
            options = options_of(self, is_classifier=False)
            X, y, weight = self._checked_training_set(X, y, sample_weight, multi_output=True)
            level, weight, offsets = known_noise(self, noise_std, y, weight)
            offsets = offsets[weight > 0]
            X, y, weight = self._without_zeros(X, y.astype(np.float64), weight)
            one_dimensional, y = y.ndim == 1, y.reshape(len(y), -1)
            likelihood = self._likelihood_of(torch.tensor(y), torch.tensor(weight))
            mean, scale = np.zeros(y.shape[1]), np.ones(y.shape[1])
            if likelihood.is_additive:
                mean, scale = self._mean_and_scale_of(y, weight)
            if level is not None:
                likelihood = Gaussian(level / float(scale[0]))
            free = level is None and isinstance(self.noise_std, str)
            targets = torch.tensor((y - mean) / scale)
            self._one_dimensional, self.y_mean_, self.y_scale_ = one_dimensional, mean, scale
            self._noise_offset = float(offsets.sum())
            result = self._fit_result(
                X, targets, weight, likelihood, y.shape[1], options, progress, checkpoint, free
            )
            rows = slice(None) if result.posterior_indices is None else result.posterior_indices
            self._noise_offset = float(offsets[rows].sum())
            self._show(result, weight)
        return self

    _noise_offset = 0.0  # of a fit with the noise of each row: Σ log of their ratios to the level

    def _likelihood_of(self, y: Tensor, weight: Tensor) -> Likelihood:
        """The one given, or the Gaussian with σ to keep or to begin with."""
        if self.likelihood is not None:
            self.likelihood.check_targets(y)
            centre = self.normalize_y and not self._is_frozen
            return self.likelihood.centred(y, weight) if centre else self.likelihood
        if is_heteroscedastic(self):
            return HeteroscedasticGaussian()
        if not isinstance(self.noise_std, str):
            return gaussian(self.noise_std, y.shape[1])
        go_on = self.warm_start and hasattr(self, "_result") and hasattr(self, "noise_std_")
        return Gaussian(self.noise_std_ if go_on else 1.0)

    def to_gaussian_process(self) -> GaussianProcessRegressor:
        """Return a fitted scikit-learn Gaussian process that is the same one (theorem 1, model C).

        Its kernel is J Jᵀ/δ, its targets the transformed targets ỹ, its noise σ². Its mean is
        J_* w*, which differs from the network's f by the linearisation; its variances are this
        estimator's. Both in the units of y. With ``inference="vi"`` it is the process at the mean μ
        (:ref:`math-variational`), whose variances are those of its own exact posterior and not
        those of q. Where the noise depends on x, it is the process of the mean with the noise of
        each row as the network has it; what the noise says of weights that both share is then left
        out, so that its standard deviations are no smaller than this estimator's. With gradients in
        the place of Jacobians (:ref:`math-gradients`) the noise of a row is one over its squared
        residual r.

        Returns
        -------
        GaussianProcessRegressor

        Raises
        ------
        ValueError
            If the network has several outputs, which scikit-learn's process treats as independent,
            the posterior is not the full one, the likelihood no Gaussian, or gradients are those of
            a noise that varies.
        """
        check_is_fitted(self)
        self._require_network_process("to_gaussian_process()")
        likelihood = self._result.likelihood
        if not isinstance(likelihood, Gaussian | HeteroscedasticGaussian):
            raise ValueError(
                f"The noise is {likelihood!r}, and that of scikit-learn's "
                "GaussianProcessRegressor is Gaussian: there is no process of that class."
            )
        if len(self.y_scale_) > 1:
            raise ValueError(
                f"The network has {len(self.y_scale_)} targets that share weights, so their "
                "processes are correlated; scikit-learn's GaussianProcessRegressor takes outputs "
                "as independent. Fit one output at a time to convert it."
            )
        model, scale = self.posterior_.model, float(self.y_scale_[0])
        if model.noise_factor.shape[2] < model.noise_factor.shape[1]:
            raise ValueError(
                "Gradients observe mean and noise of a row together, which no process of the mean "
                "does: take inference='laplace' where the noise varies."
            )
        kernel = ConstantKernel(scale**2, "fixed") * self.kernel_
        X = model.X.cpu().numpy()
        # s²/weight of each row: its first output's 1/Λ.
        noise = scale**2 / model.noise_factor[:, 0, 0].cpu().numpy() ** 2
        targets = self._shaped(model.transformed_targets().cpu().numpy())
        gp = process_of(kernel, X, scale * targets, noise)
        # scikit-learn has no public prior mean; the offset is the one normalize_y itself uses.
        gp._y_train_mean = gp._y_train_mean + float(self.y_mean_[0])
        return gp

    @property
    def transformed_targets_(self) -> NDArray:
        """ỹ = J w* - Λ⁻¹ r of theorem 1, in the network's units: (n_samples,) or (…, n_outputs)."""
        check_is_fitted(self)
        return self._shaped(self.linear_model_.transformed_targets().cpu().numpy())

    def _targets(self, y: Tensor, n_outputs: int) -> Tensor:
        """Other targets in the units of training."""
        mean, scale = torch.tensor(self.y_mean_), torch.tensor(self.y_scale_)
        return (y.double().reshape(len(y), -1) - mean) / scale

    def _mean_and_scale_of(self, y: NDArray, weight: NDArray) -> tuple[NDArray, NDArray]:
        """What y is standardised with; a frozen net keeps the units that it was trained in."""
        if not self.normalize_y or self._is_frozen:
            return np.zeros(y.shape[1]), np.ones(y.shape[1])
        mean = np.average(y, axis=0, weights=weight)
        scale = np.sqrt(np.average((y - mean) ** 2, axis=0, weights=weight))
        constant = scale <= 10 * np.finfo(float).eps * np.abs(mean)
        if constant.any():
            warn(
                "y is constant" + (" in an output" if y.shape[1] > 1 else "") + ": there is "
                "nothing to learn, and the prediction is that constant.",
                UserWarning,
            )
        return mean, np.where(constant, 1.0, scale)

    def _evidence_offset(self, weight: NDArray) -> float:
        """log of the change of units: the density of y is its standardised value's over scale."""
        known = self._noise_offset if weight is getattr(self, "_fit_sample_weight", None) else 0.0
        return known - float(weight.sum() * np.log(self.y_scale_).sum())

    def _hyperparameters(self) -> list[float]:
        sigma = self._result.likelihood.sigma
        return [self.prior_precision_, *([] if sigma is None else [sigma])]

    def _encoded(self, y: NDArray) -> Tensor:
        y = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        self._result.likelihood.check_targets(torch.tensor(y))
        return torch.tensor((y - self.y_mean_) / self.y_scale_)

    @property
    def noise_std_(self) -> float:
        """σ used, in the units of y as the network sees it.

        Raises
        ------
        AttributeError
            If the likelihood is another: it has no single σ.
        """
        check_is_fitted(self)
        likelihood = self._result.likelihood
        if likelihood.sigma is None:
            raise AttributeError(f"{likelihood!r} has no noise_std.")
        return likelihood.sigma
