"""DNN2GPClassifier: a softmax or logistic network as a Gaussian process (MATH 1 to 4, 8)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.utils import Bunch, compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .._utils.random import draw_seed, torch_generator
from ..inference.linearized import maximise_linearized_elbo
from ..likelihoods import Bernoulli, Categorical, Likelihood
from ..links import LINKS, log_proba, log_softmax, mean_uncertainty, of_classes, of_difference
from ..training.source import NetworkSource, check_logits
from .base import BaseDNN2GP, input_tensor
from .checks import check_labels, check_outputs_option, check_target

__all__ = ["DNN2GPClassifier"]


class DNN2GPClassifier(ClassifierMixin, BaseDNN2GP):
    """Classification by a neural network that is a Gaussian process at its trained weights.

    The network's outputs are logits: one for two classes (Bernoulli), K for K classes
    (categorical). It is trained to the maximum of the posterior (sum of log losses + δ/2 ‖w‖²).
    There, the Laplace approximation with the generalised Gauss-Newton matrix is the posterior of a
    Gaussian process over the logits with the neural tangent kernel J Jᵀ/δ (Khan et al. 2019,
    theorem 1; MATH 3). It gives probabilities that know how much the data say, their split into
    noise and ignorance (MATH 4), and a marginal likelihood that chooses δ inside ``fit``.

    Parameters
    ----------
    net : None, torch Module (class or instance), skorch NeuralNet or FrozenEstimator, default=None
        The network, giving logits: no softmax or sigmoid at its end. None builds an MLP. A module
        is trained with ``solver``; an instance is copied, never changed. A skorch net is cloned and
        trained with its own optimiser, batch size, callbacks and device, under this likelihood and
        prior. A fitted net inside :class:`~sklearn.frozen.FrozenEstimator` is used as trained. With
        two classes a network of one output is a logistic one, of two outputs a softmax one.
    hidden_layer_sizes : sequence of int, default=(50,)
        Width of each hidden layer, for ``net=None``.
    activation : {"tanh", "relu", "sigmoid", "logistic", "erf", "gelu", "identity"}, default="tanh"
        Activation of the hidden layers, for ``net=None``.
    prior_precision : float or "auto", default="auto"
        δ > 0; "auto" chooses it by the evidence.
    prior_groups : {"all", "layer", "feature"}, default="all"
        Which weights share a δ. "layer": each dense layer's, and all biases; "feature": each
        input's in the first layer too, so that the inputs that do not matter are switched off
        (automatic relevance determination). For the default network, with
        ``prior_precision="auto"``, ``solver="gauss-newton"`` and ``posterior="full"``.
    inference : {"laplace", "vi", "linearized-vi"}, default="laplace"
        How the posterior is found. "laplace": at the minimum of the loss, by its curvature, which
        is too wide a posterior where the network is sure of its data. "linearized-vi": the best
        Gaussian of the same linear model by the evidence lower bound, in about ten times the time;
        its mean moves with it, and probabilities that average over it are as a rule better than the
        network's own. "vi": by variational training of the network from there (VOGGN for
        ``posterior="full"``, VOGN for "diag"; theorem 2), whose converged q(w) is a Gaussian
        process too, with the network at its mean (MATH 5); "auto" then goes on to the best lower
        bound. For "linearized-vi" it is the Laplace evidence that chooses δ.
    vi_epochs : int, default=200
        Epochs of variational training.
    mc_samples : int, default=4
        Draws of the weights in each variational step.
    posterior : {"full", "diag", "last_layer"}, default="full"
        "full" is exact, by the smaller of weight space and function space. The others are
        approximations: the diagonal of the precision; the last layer's weights only.
    posterior_samples : int or None, default=None
        Condition the Gaussian process on this many examples only, drawn at random, as the paper
        does for large data: an approximation, which widens the posterior. The network is trained on
        all. None takes all.
    outputs : {"joint", "independent"}, default="joint"
        "independent" is an approximation: one Gaussian process per class, the correlations between
        classes dropped, so that n_classes matrices of n_samples rows are factorised and not one of
        n_samples · n_classes. Needs ``posterior="full"`` and a number for ``prior_precision``.
    link : {"probit", "contrast", "mc", "map"}, default="probit"
        How probabilities come from the logits' distribution N(f, V) (MATH 4): softmax(f/√(1 + π/8
        diag V)); the same of each logit against the mean of the others, so that the variance of a
        shift of all logits, which no data determine, does not count: the better one for several
        classes; the mean of the softmax over 1,024 quasi-random draws; softmax(f), the network's
        own.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, by label; they multiply ``sample_weight``.
    solver : {"gauss-newton", "adam", "lbfgs", "sgd"} or Optimizer class, default="gauss-newton"
        How a network without a skorch net of its own is trained. "gauss-newton" sees the whole data
        in each step, and is the one that reaches a true minimum; "adam" is for large networks.
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
        chooses δ with "gauss-newton" (24 where n_samples times n_outputs times weights is at most
        10,000; most are dropped early), and 1 otherwise.
    evidence_interval : int, default=20
        Epochs between updates of δ by the evidence, with solvers other than "gauss-newton"
        (Immer et al. 2021); at the end the best at the trained weights is taken.
    warm_start : bool, default=False
        Go on from the last fit's weights and δ.
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
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    module_ : torch.nn.Module
        The trained network, in eval mode.
    net_ : skorch.NeuralNet or None
        The skorch net that trained it; None for a frozen net.
    prior_precisions_ : dict of str to float
        δ of each group of weights ("all"; or the layers or input features, and "biases", whose own
        is ``prior_precision_``).
    prior_precision_ : float
        δ used, given or chosen.
    linear_model_ : LinearModel
        Theorem 1's linear model, of the examples that the posterior is conditioned on.
    posterior_ : Posterior
        Its posterior; with ``inference="linearized-vi"`` the posterior of the linear model whose
        noise precision and residuals are means over q (``posterior_.model``).
    posterior_indices_ : ndarray of int, or None
        Rows that the posterior is conditioned on; None for all.
    kernel_ : NTKKernel
        J Jᵀ/δ as a scikit-learn kernel.
    log_marginal_likelihood_value_ : float
        Laplace evidence of the training labels (of the rows of ``posterior_indices_``).
    effective_dimension_ : float
        γ: how many weights the data determine.
    n_iter_ : int
        Steps (Gauss-Newton) or epochs of the network that was kept.
    gradient_norm_ : float
        ‖∇loss‖ at the trained weights: 0 at a true minimum.
    newton_decrement_ : float
        ∇lossᵀ A⁻¹ ∇loss: how far theorem 1's linear model is from being centred at the network
        (nan for independent outputs, which have no common A).
    loss_curve_ : list of float
        loss(w) per epoch; with ``inference="vi"`` the mean loss of the draws, prior excluded.
    elbo_curve_ : list of float
        With ``inference="vi"``: the evidence lower bound per epoch, estimated from its draws. With
        "linearized-vi": the lower bound on the evidence of the linear model, per step.
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    See Also
    --------
    sklearn.gaussian_process.GaussianProcessClassifier : With a kernel fixed in advance.

    References
    ----------
    Khan, Immer, Abedi, Korzepa, "Approximate Inference Turns Deep Networks into Gaussian
    Processes", NeurIPS 2019, arXiv 1906.01930. Immer, Korzepa, Bauer, "Improving predictions of
    Bayesian neural nets via local linearization", 2021, arXiv 2008.08400. Opper, Archambeau, "The
    Variational Gaussian Approximation Revisited", 2009. Kuss, Rasmussen, "Assessing Approximate
    Inference for Binary Gaussian Process Classification", 2005.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import DNN2GPClassifier
    >>> X = np.linspace(-2, 2, 40)[:, None]
    >>> y = np.where(X[:, 0] > 0, "right", "left")
    >>> model = DNN2GPClassifier(
    ...     hidden_layer_sizes=(5,), prior_precision=1.0, random_state=0
    ... ).fit(X, y)
    >>> model.predict([[1.5]]).tolist()
    ['right']
    >>> near, far = model.predict_uncertainty([[-1.0], [0.1]]).total[:, 1]
    >>> bool(far > near)  # most uncertain at the boundary
    True
    """

    _parameter_constraints: dict = {
        **BaseDNN2GP._parameter_constraints,
        "inference": [StrOptions({"laplace", "vi", "linearized-vi"})],
        "posterior_samples": [None, Interval(Integral, 2, None, closed="left")],
        "outputs": [StrOptions({"joint", "independent"})],
        "link": [StrOptions(set(LINKS))],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        net: Any = None,
        *,
        hidden_layer_sizes: Any = (50,),
        activation: str = "tanh",
        prior_precision: float | str = "auto",
        prior_groups: str = "all",
        inference: str = "laplace",
        vi_epochs: int = 200,
        mc_samples: int = 4,
        posterior: str = "full",
        posterior_samples: int | None = None,
        outputs: str = "joint",
        link: str = "probit",
        class_weight: Mapping | str | None = None,
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
        memory_limit: float | None = None,
        device: Any = "cpu",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.net = net
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.prior_precision = prior_precision
        self.prior_groups = prior_groups
        self.inference = inference
        self.vi_epochs = vi_epochs
        self.mc_samples = mc_samples
        self.posterior = posterior
        self.posterior_samples = posterior_samples
        self.outputs = outputs
        self.link = link
        self.class_weight = class_weight
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
        self.memory_limit = memory_limit
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> DNN2GPClassifier:
        """Train the network and make it a Gaussian process.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Inputs; more than two dimensions where ``net`` takes them, as (n_samples, channels,
            height, width).
        y : array-like of shape (n_samples,)
            Labels, of any type that scikit-learn takes.
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each example counts; zero leaves it out.

        Returns
        -------
        self : DNN2GPClassifier

        Raises
        ------
        ConvergenceError
            If training diverged.
        MemoryError
            If a matrix does not fit the memory limit.
        ValueError
            If an argument or the data cannot be used: fewer than two classes, a network whose
            outputs are probabilities, or of the wrong number.
        """
        X, y, weight = self._checked_training_set(X, y, sample_weight, y_numeric=False)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only, {self.classes_.tolist()[0]!r}: a classifier needs at "
                "least 2 classes (counted where sample_weight is positive)."
            )
        check_outputs_option(self)
        if self.class_weight is not None:
            weight = weight * compute_sample_weight(self.class_weight, y)
        n_outputs = self._count_outputs(X)
        self._likelihood: Likelihood = Bernoulli() if n_outputs == 1 else Categorical()
        self._draw_seed = draw_seed(self.random_state)
        codes = self._encoded(y)
        self._fit_network(X, codes, weight, self._likelihood, n_outputs)
        self._shift: Tensor | None = None
        if self.inference == "linearized-vi":
            self._move_to_linearized_elbo(codes)
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Most probable class under ``predict_proba``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        if len(self.classes_) > 2 or self.link in ("mc", "map"):
            log_p = self._log_proba(X, self.link)
        else:  # these links keep the sign of the difference: no variance is needed
            log_p = log_softmax(self._latent_mean(self._checked_inputs(X)))
        return self.classes_[log_p.argmax(-1).numpy()]

    def predict_proba(self, X: ArrayLike, link: str | None = None) -> NDArray:
        """Probabilities of the classes, by ``link`` (MATH 4).

        For two classes the links are taken of the difference of the logits, so that a network of
        two outputs agrees with one of a single output.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        link : {"probit", "contrast", "mc", "map"}, default=None
            None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)

        Raises
        ------
        ValueError
            If ``link`` is unknown.
        """
        return self._log_proba(X, link).exp().numpy()

    def predict_log_proba(self, X: ArrayLike, link: str | None = None) -> NDArray:
        """Logarithms of :meth:`predict_proba`, finite where a probability underflows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        link : {"probit", "contrast", "mc", "map"}, default=None
            None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return self._log_proba(X, link).numpy()

    def decision_function(self, X: ArrayLike) -> NDArray:
        """Scores whose softmax (sigmoid, for two classes) is :meth:`predict_proba`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,) for two classes, (n_samples, n_classes) otherwise
            Two classes: log p₁/p₀. More: log p_k, up to a constant per row.
        """
        log_p = self._log_proba(X, None)
        if len(self.classes_) == 2:
            return (log_p[:, 1] - log_p[:, 0]).numpy()
        return log_p.numpy()

    def predict_std(self, X: ArrayLike, target: str = "p") -> NDArray:
        """Standard deviation of the classes' probabilities, or of the latent logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        target : {"p", "y", "latent"}, default="p"
            "p": of the probabilities, √diag(Λ V Λ); "y": of the labels as 0 or 1 per class, noise
            included; "latent": of the logits, √diag V.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples, n_outputs) for "latent"

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "p", "latent"))
        if target == "latent":
            V = self._latent_covariance(self._checked_inputs(X))
            return V.diagonal(dim1=-2, dim2=-1).sqrt().numpy()
        parts = self.predict_uncertainty(X)
        return np.sqrt(parts.epistemic if target == "p" else parts.total)

    def predict_uncertainty(
        self, X: ArrayLike, full: bool = False, link: str | None = None
    ) -> Bunch:
        """Variance of the labels, as 0 or 1 per class, split into noise and ignorance (MATH 4).

        Var[y] = Λ_* + Λ_* V_* Λ_*, with Λ_* = diag p - p pᵀ at p = softmax(f), f the mean of the
        logits. That is the first order in V_*: where the mean is sure of a class, however large V_*
        is, both parts vanish. ``link="mc"`` takes the whole distribution f ~ N(f_*, V_*) instead:

            Var[y] = E[diag p - p pᵀ] + Cov(p)

        (Kwon et al. 2020, arXiv 1806.05978), at most ¼ per class together; it tells inputs of a
        kind never seen.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        full : bool, default=False
            Return the covariances between the classes, not the variances alone.
        link : {"mc"}, default=None
            None is the first order; "mc" the mean over the draws of ``predict_proba``'s link.

        Returns
        -------
        Bunch
            ``aleatoric``, ``epistemic`` and ``total``, each of shape (n_samples, n_classes), or
            (n_samples, n_classes, n_classes) if ``full``.

        Raises
        ------
        ValueError
            If ``link`` is another.
        """
        if link not in (None, "mc"):
            raise ValueError(f"link must be None or 'mc', got {link!r}.")
        inputs = self._checked_inputs(X)
        f, V = self._latent_mean(inputs), self._latent_covariance(inputs)
        if link == "mc":
            aleatoric, epistemic = mean_uncertainty(*of_difference(f, V), self._draw_seed)
        else:
            aleatoric = of_classes(self._likelihood.aleatoric(f))
            epistemic = of_classes(self._likelihood.epistemic(f, V))
        if not full:
            aleatoric, epistemic = (t.diagonal(dim1=-2, dim2=-1) for t in (aleatoric, epistemic))
        return Bunch(
            aleatoric=aleatoric.numpy().copy(),
            epistemic=epistemic.numpy().copy(),
            total=(aleatoric + epistemic).numpy(),
        )

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: Any = 0, target: str = "y"
    ) -> NDArray:
        """Draw joint samples from the predictive distribution of the Gaussian process.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features) or (n_rows, ...)
        n_samples : int, default=1
        random_state : int, RandomState or None, default=0
        target : {"y", "p", "latent"}, default="y"
            Labels, the classes' probabilities, or the logits.

        Returns
        -------
        ndarray of shape (n_rows, n_samples), or (n_rows, n_columns, n_samples) for "p" and "latent"

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "p", "latent"))
        inputs = self._checked_inputs(X)
        generator = torch_generator(random_state)
        f = self.posterior_.sample(inputs, n_samples, generator).cpu() + self._latent_mean(inputs)
        if target == "latent":
            return np.moveaxis(f.numpy(), 0, -1)
        p = log_softmax(f).exp()
        if target == "p":
            return np.moveaxis(p.numpy(), 0, -1)
        codes = torch.multinomial(p.flatten(0, 1), 1, generator=generator)
        return self.classes_[codes.reshape(n_samples, -1).numpy().T]

    def to_gaussian_process(self) -> GaussianProcessRegressor:
        """Return a fitted scikit-learn process over the logit (theorem 1, model C).

        A regression: its kernel is J Jᵀ/δ, its targets the transformed targets ỹ, its noise Λ⁻¹ per
        example, those of ``posterior_.model``. Its mean is J_* w* (J_* μ with "linearized-vi"), its
        variances are this estimator's of the logit.

        Returns
        -------
        GaussianProcessRegressor

        Raises
        ------
        ValueError
            If the network has several logits, the posterior is not the full one, or Λ vanishes.
        """
        check_is_fitted(self)
        if not isinstance(self._likelihood, Bernoulli):
            raise ValueError(
                f"The network has {self.linear_model_.noise_factor.shape[1]} logits whose noise "
                "precision Λ = diag p - p pᵀ is singular and whose processes are correlated; "
                "scikit-learn's GaussianProcessRegressor takes outputs as independent, with "
                "finite noise. Only a network with one logit (two classes) can be converted."
            )
        if self.posterior != "full":
            raise ValueError(
                f"posterior={self.posterior!r} is no Gaussian process with this kernel; use 'full'."
            )
        model = self.posterior_.model
        precision = model.noise_factor[:, 0, 0].numpy() ** 2
        if not (precision > np.finfo(float).tiny).all():
            raise ValueError(
                "The network is so certain of some examples that their noise precision p(1-p) is "
                "zero: their transformed targets are infinite. Raise prior_precision."
            )
        X, targets = model.X.numpy(), model.transformed_targets().numpy()[:, 0]
        gp = GaussianProcessRegressor(self.kernel_, alpha=1.0 / precision, optimizer=None)
        return gp.fit(X.reshape(len(X), -1), targets)

    @property
    def transformed_targets_(self) -> NDArray:
        """ỹ = J w* - Λ⁺ r of theorem 1: (n_samples,) for one logit, (n_samples, n_outputs)."""
        check_is_fitted(self)
        targets = self.linear_model_.transformed_targets().numpy()
        return targets[:, 0] if isinstance(self._likelihood, Bernoulli) else targets

    def _count_outputs(self, X: NDArray) -> int:
        """One logit for two classes, unless the user's own network has two."""
        n_classes = len(self.classes_)
        if self.net is None:
            return 1 if n_classes == 2 else n_classes
        found = check_logits(NetworkSource(self.net, (), "tanh", n_classes), input_tensor(X[:4]))
        return 1 if n_classes == 2 and found == 1 else n_classes

    def _encoded(self, y: NDArray) -> Tensor:
        """Class numbers as the likelihood wants them."""
        check_labels(y, self.classes_)
        index = torch.tensor(np.searchsorted(self.classes_, y))
        return index if isinstance(self._likelihood, Categorical) else index[:, None].double()

    def _log_proba(self, X: ArrayLike, link: str | None) -> Tensor:
        """log p, of shape (n_samples, n_classes)."""
        link = self.link if link is None else link
        if link not in LINKS:
            raise ValueError(f"link must be one of {LINKS}, got {link!r}.")
        inputs = self._checked_inputs(X)
        if link == "map":
            return log_softmax(self._outputs(inputs))
        f, V = self._latent_mean(inputs), self._latent_covariance(inputs)
        return log_proba(link, f, V, self._draw_seed)

    def _move_to_linearized_elbo(self, codes: Tensor) -> None:
        """Replace the Laplace posterior by the best Gaussian of the same linear model."""
        rows = self.posterior_indices_
        best = maximise_linearized_elbo(
            self.linear_model_,
            codes if rows is None else codes[torch.tensor(rows)],
            self._likelihood,
            torch.tensor(self._fit_sample_weight),
            self.memory_limit,
        )
        self.posterior_, self._shift = best.posterior, best.shift
        self.elbo_curve_ = best.elbo_curve

    def _latent_mean(self, inputs: Tensor) -> Tensor:
        """E f(X): the network's outputs, or those of its linearisation at q's mean."""
        f = self._outputs(inputs)
        if self._shift is None:
            return f
        return f + self.posterior_.model.linearization.jvp(inputs, self._shift).double().cpu()

    def _evidence_offset(self, weight: NDArray) -> float:
        return 0.0

    def _hyperparameters(self) -> list[float]:
        return [self.prior_precision_]
