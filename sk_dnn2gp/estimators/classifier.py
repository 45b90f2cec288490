"""DNN2GPClassifier: a softmax or logistic network as a Gaussian process.

Mathematics: :ref:`math-objective` to :ref:`math-predicting`, :ref:`math-choosing`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .._utils.random import draw_seed
from .._utils.rows import as_rows
from ..likelihoods import Bernoulli, Categorical, Likelihood
from ..links import LINKS
from ..training.source import NetworkSource, check_logits
from .base import BaseDNN2GP
from .classification import _ClassPredictions
from .options import options_of
from .process import process_of

__all__ = ["DNN2GPClassifier"]


class DNN2GPClassifier(ClassifierMixin, _ClassPredictions):
    """Classification by a neural network that is a Gaussian process at its trained weights.

    The network's outputs are logits: one for two classes (Bernoulli), K for K classes
    (categorical). It is trained to the maximum of the posterior (sum of log losses + δ/2 ‖w‖²).
    There, the Laplace approximation with the generalised Gauss-Newton matrix is the posterior of a
    Gaussian process over the logits with the neural tangent kernel J Jᵀ/δ (Khan et al. 2019,
    theorem 1; :ref:`math-laplace`). It gives probabilities that know how much the data say, their
    split into noise and ignorance (:ref:`math-predicting`), and a marginal likelihood that chooses
    δ inside ``fit``.

    Parameters
    ----------
    net : None, torch Module (class or instance), skorch NeuralNet or FrozenEstimator, default=None
        The network, giving logits: no softmax or sigmoid at its end; with two classes one output is
        a logistic network, two are a softmax one. None builds an MLP whose first layer standardises
        its inputs. A module is trained with ``solver``; an instance is copied, never changed, and
        training begins at its weights (those that need no gradient stay). A skorch net is cloned,
        and trained with its own optimiser, batch size, callbacks and device, under this likelihood
        and prior; a validation split that it asks for, or that its callbacks need, is kept, while
        the posterior is of all rows. A fitted net inside
        :class:`~sklearn.frozen.FrozenEstimator` is used as trained.
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
    inference : {"laplace", "vi", "linearized-vi", "swag"} or object, default="laplace"
        How the posterior is found. "laplace": at the minimum of the loss, by its curvature, which
        is too wide a posterior where the network is sure of its data. "linearized-vi": the best
        Gaussian of the same linear model by the evidence lower bound, in one to three times the
        time; its mean moves with it, and probabilities that average over it are far better than
        Laplace's, with two classes often than the network's own. Its δ is the Laplace evidence's:
        its own bound chooses alike where the network is trained anew for each δ. "vi": by
        variational training of the network from there (:ref:`math-variational`). "swag": from the
        weights along SGD at a constant rate (:ref:`math-swag`), without an evidence.
    posterior : {"auto", "full", "diag", "last_layer", "independent"} or object, default="auto"
        "full" is exact, by the smaller of weight space and function space, and "auto" is "full"
        where it fits the memory. The others are approximations: the diagonal of the precision; the
        last layer's weights only; one process per class ("independent", which needs a number for
        ``prior_precision``). Objects have settings, as ``SubsetOfData(1000)``, which conditions the
        process on that many examples, of :mod:`sk_dnn2gp.posterior`.
    solver : {"auto", "newton-cg", "gauss-newton", "lbfgs", "adam", "sgd"}, torch Optimizer class \
            or object, default="auto"
        How a network without a skorch net of its own is trained; "auto" by counted operations:
        Newton steps on all examples where a factor is cheap, whole passes beyond, minibatches at
        last. Settings live in the objects of :mod:`sk_dnn2gp.training`, and are reached as
        ``solver__max_iter``.
    n_restarts : int or "auto", default="auto"
        Starts from different weights; the best evidence wins. "auto" is 1 to 6, by the operations
        that a start takes, where the evidence chooses δ; and 1 otherwise, for skorch nets and for
        instances of a module.
    link : {"auto", "probit", "contrast", "mc", "map"}, default="auto"
        How probabilities come from the logits' distribution N(f, V) (:ref:`math-predicting`).
        "probit": softmax(f/√(1 + π/8 diag V)); "contrast": the same of each logit against the mean
        of the others, so that the variance of a shift of all logits, which no data determine, does
        not count; "mc": the mean of the softmax over 1,024 quasi-random draws; "map": softmax(f),
        the network's own. "auto" is what predicted best of seven sets (the guide has the table):
        "contrast" for ``inference="linearized-vi"``, whose posterior is made for it, and "map" for
        the others, whose posterior is too wide where the network is sure.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, by label; they multiply ``sample_weight``.
    warm_start : bool, default=False
        Go on from the last fit's weights and δ.
    device : str or torch.device, default="cpu"
        Where the network is trained and evaluated.
    random_state : int, RandomState or None, default=None
        Initial weights, minibatches and draws. An int makes everything reproducible.
    verbose : int, default=0
        1 prints a line for each stage with its time and evidence, and a bar over long predictions.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
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
        "link": [StrOptions({"auto", *LINKS})],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        net: Any = None,
        *,
        hidden_layer_sizes: Any = (50,),
        activation: str = "tanh",
        prior_precision: float | str = "auto",
        prior_groups: Any = "all",
        inference: Any = "laplace",
        posterior: Any = "auto",
        solver: Any = "auto",
        n_restarts: int | str = "auto",
        link: str = "auto",
        class_weight: Mapping | str | None = None,
        warm_start: bool = False,
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
        self.posterior = posterior
        self.solver = solver
        self.n_restarts = n_restarts
        self.link = link
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        checkpoint: str | os.PathLike | None = None,
    ) -> DNN2GPClassifier:
        """Train the network and make it a Gaussian process.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Inputs; more than two dimensions where ``net`` takes them, as (n_samples, channels,
            height, width). A ``numpy.memmap``, a torch or skorch Dataset and a DataLoader are read
            a part at a time, and stay where they are: see the guide's page on large data.
        y : array-like of shape (n_samples,), default=None
            Labels, of any type that scikit-learn takes. None takes those of a Dataset's items.
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each example counts; zero leaves it out.
        checkpoint : str or path-like, default=None
            A file that keeps what the fit has done so far. A fit that was killed goes on from it
            when it is called again with the same data, parameters and versions: with one thread to
            the same bits. It is taken away when the fit is done. Needs a whole ``random_state``.

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
        with self._fitting(X, y, sample_weight) as progress:
            options = options_of(self, is_classifier=True)
            X, y, weight = self._checked_training_set(X, y, sample_weight, y_numeric=False)
            check_classification_targets(y)
            if self.class_weight is not None:
                weight = weight * compute_sample_weight(self.class_weight, y)
            X, y, weight = self._without_zeros(X, y, weight)
            self.classes_ = np.unique(y)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"y has one class only, {self.classes_.tolist()[0]!r}: a classifier needs at "
                    "least 2 classes (counted where the weights are positive)."
                )
            n_outputs = self._count_outputs(X)
            likelihood: Likelihood = Bernoulli() if n_outputs == 1 else Categorical()
            draws = draw_seed(self.random_state)
            codes = self._codes(y, n_outputs)
            result = self._fit_result(
                X, codes, weight, likelihood, n_outputs, options, progress, checkpoint
            )
            self._draw_seed = draws
            self._show(result, weight)
        return self

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
        self._require_network_process("to_gaussian_process()")
        if not isinstance(self._result.likelihood, Bernoulli):
            raise ValueError(
                f"The network has {self.linear_model_.noise_factor.shape[1]} logits whose noise "
                "precision Λ = diag p - p pᵀ is singular and whose processes are correlated; "
                "scikit-learn's GaussianProcessRegressor takes outputs as independent, with "
                "finite noise. Only a network with one logit (two classes) can be converted."
            )
        model = self.posterior_.model
        precision = model.noise_factor[:, 0, 0].cpu().numpy() ** 2
        if not (precision > np.finfo(float).tiny).all():
            raise ValueError(
                "The network is so certain of some examples that their noise precision p(1-p) is "
                "zero: their transformed targets are infinite. Raise prior_precision."
            )
        X, targets = model.X.cpu().numpy(), model.transformed_targets().cpu().numpy()[:, 0]
        return process_of(self.kernel_, X, targets, 1.0 / precision)

    @property
    def transformed_targets_(self) -> NDArray:
        """ỹ = J w* - Λ⁺ r of theorem 1: (n_samples,) for one logit, (n_samples, n_outputs)."""
        check_is_fitted(self)
        targets = self.linear_model_.transformed_targets().cpu().numpy()
        return targets[:, 0] if isinstance(self._result.likelihood, Bernoulli) else targets

    def _count_outputs(self, X: Any) -> int:
        """One logit for two classes, unless the user's own network has two."""
        n_classes = len(self.classes_)
        if self.net is None:
            return 1 if n_classes == 2 else n_classes
        source = NetworkSource(self.net, (), "tanh", n_classes)
        found = check_logits(source, source.inputs(as_rows(X[:4])))
        return 1 if n_classes == 2 and found == 1 else n_classes

    def _encoded(self, y: NDArray) -> Tensor:
        """Class numbers as the likelihood wants them."""
        self._refuse_unseen(y)
        return self._codes(y, 1 if isinstance(self._result.likelihood, Bernoulli) else 2)

    def _targets(self, y: Tensor, n_outputs: int) -> Tensor:
        """Other labels as class numbers."""
        return self._codes(y.cpu().numpy().reshape(-1), n_outputs)

    def _codes(self, y: NDArray, n_outputs: int) -> Tensor:
        index = torch.tensor(np.searchsorted(self.classes_, y))
        return index[:, None].double() if n_outputs == 1 else index

    def _weighed(self, y: NDArray, weight: NDArray) -> NDArray:
        """Weights of rows, with those of their classes."""
        if self.class_weight is None:
            return weight
        if isinstance(self.class_weight, Mapping):  # other data may lack a class
            return weight * np.array([self.class_weight.get(c, 1.0) for c in y.tolist()])
        return weight * compute_sample_weight(self.class_weight, y)

    def _evidence_offset(self, weight: NDArray) -> float:
        return 0.0

    def _hyperparameters(self) -> list[float]:
        return [self.prior_precision_]
