"""The outcomes that a case may have, correct or a named error, and what correct means."""

from __future__ import annotations

import copy
import math
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.linalg import LinAlgError
from sklearn.exceptions import NotFittedError

from sk_dnn2gp.estimators.options import options_of
from sk_dnn2gp.exceptions import ConvergenceError
from sk_dnn2gp.inference import SWAG, Laplace
from sk_dnn2gp.model_selection import marginal_likelihood_scorer
from sk_dnn2gp.posterior import Full, LowRankPosterior

from .cases import Case
from .oracle import (
    Truth,
    as_double,
    categories,
    chosen_names,
    exposure,
    jacobian,
    noise_of_rows,
    training_weight,
    truth,
)

TIME_LIMIT = 20.0
EPS = 1e-15
NAMED_ERRORS = (ValueError, ConvergenceError, MemoryError, LinAlgError)
ARGUMENTS = re.compile(
    r"\b(X|y|net|sample_weight|Sample weights|class_weight|prior_precision|prior_groups|noise_std|"
    r"likelihood|normalize_y|inference\w*|posterior\w*|solver\w*|warm_start|parameters|learning_rate|batch_size|max_iter|classes)\b"
)


class TooSlow(Exception):
    """A case that took longer than the time limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow inside the block when so much processor time is spent.

    Processor time, so that a busy machine fails no case; the work is on one thread. Where the
    system has no such signal there is no limit.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer")):
        yield
        return

    def over(number: int, frame: Any) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except TooSlow as error:
        # Raised anew: pytest stumbles over a traceback that ends between two lines.
        raise TooSlow(*error.args) from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def outcome(case: Case) -> str:
    """Run a case, and say what became of it.

    Parameters
    ----------
    case : Case

    Returns
    -------
    str
        "correct", or the error's type and the beginning of its message.

    Raises
    ------
    AssertionError
        If it is neither.
    TooSlow
    """
    before = _surroundings(case)
    model = case.estimator()
    with time_limit(TIME_LIMIT), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(case.X, case.y, case.weight, **case.extra)
        except NAMED_ERRORS as error:
            result = check_error(case, model, error)
        else:
            check_fit(case, model)
            if case.number % 3 == 0:
                check_failed_refit(case, model)
            result = "correct"
    check_warnings(caught)
    assert_same(before, _surroundings(case))
    return result


def _surroundings(case: Case) -> dict[str, Any]:
    """What a case must leave as it is."""
    module = case.user_module
    return {
        "numpy": np.random.get_state()[1].copy(),
        "torch": torch.get_rng_state(),
        "settings": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "X": np.array(case.X),
        "y": np.array(case.y),
        "weight": None if case.weight is None else case.weight.copy(),
        "module": None if module is None else copy.deepcopy(module.state_dict()),
        "training": None if module is None else module.training,
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Nothing outside the estimator was changed."""
    for name, value in before.items():
        now = after[name]
        if isinstance(value, dict):
            assert all(torch.equal(value[key], now[key]) for key in value), f"{name} was changed"
        elif isinstance(value, np.ndarray | torch.Tensor):
            assert bool((value == now).all()), f"{name} was changed"
        else:
            assert value == now, f"{name} was changed: {value} -> {now}"


def check_warnings(caught: list[warnings.WarningMessage]) -> None:
    """Warnings are for users: none that only a developer could act on."""
    for item in caught:
        assert issubclass(item.category, UserWarning), (
            f"{item.category.__name__}: {item.message} ({item.filename}:{item.lineno})"
        )


def check_error(case: Case, model: Any, error: Exception) -> str:
    """The message names an argument; the estimator is as before; tame data are no excuse."""
    text = str(error)
    assert ARGUMENTS.search(text), f"names no argument: {error!r}"
    assert not any(name.endswith("_") for name in vars(model)), "a failed fit left attributes"
    try:
        model.predict(case.X_new)
    except NotFittedError:
        pass
    else:
        raise AssertionError("predict works after a failed first fit")
    if case.is_tame and case.words["weight"] != "extreme":
        kind = isinstance(error, ValueError) and not isinstance(error, ArithmeticError)
        assert kind, f"on ordinary data: {error!r}"
    return f"{type(error).__name__}: {re.sub(r'[0-9][0-9.e+-]*', '#', text)[:70]}"


def check_fit(case: Case, model: Any) -> None:
    """Every invariant of a fitted estimator."""
    options = options_of(model, case.classifier)
    check_attributes(case, model)
    check_evidence(case, model)
    if case.classifier:
        check_probabilities(case, model)
    else:
        check_regression(case, model)
    V = latent(model, model.predict_std(case.X_new, target="latent"))
    if isinstance(options.inference, SWAG):
        check_moments(case, model, V)
        return
    exact = truth(case, model, options.posterior)
    check_oracle(case, model, options, exact, V)
    if isinstance(model.posterior_, LowRankPosterior):
        check_brackets(case, model, exact, V)


def latent(model: Any, std: np.ndarray) -> torch.Tensor:
    """Variances of f as the network sees y, (n_samples, n_outputs), of ``predict_std``'s."""
    scale = getattr(model, "y_scale_", 1.0)
    return torch.tensor((std.reshape(len(std), -1) / scale) ** 2)


def finite(values: Any, what: str) -> None:
    assert np.isfinite(values).all(), f"{what} is not finite: {values}"


def check_attributes(case: Case, model: Any) -> None:
    """δ, σ and the weights that are shown are those of the posterior."""
    deltas = sorted(set(model.posterior_.model.prior_precision.tolist()))
    assert deltas == sorted(set(model.prior_precisions_.values())), "δ and posterior out of step"
    assert model.prior_precision_ in deltas
    if "prior_precision" in case.options:
        assert deltas == [case.options["prior_precision"]], "δ is not the given one"
    if case.words.get("noise") == "given":
        assert model.noise_std_ == case.options["noise_std"], "σ is not the given one"
    if case.words.get("noise") in ("auto", "given", "rows"):
        L = model.linear_model_.noise_factor[:, 0, 0].numpy()
        root = np.sqrt(model._fit_sample_weight)
        np.testing.assert_allclose(L, root / model.noise_std_, rtol=1e-13, err_msg="σ out of step")
    finite(model.effective_dimension_, "effective_dimension_")
    most = min(model.linear_model_.n_params, model.linear_model_.n_rows)
    if case.words["posterior"] == "independent":
        most = model.linear_model_.n_rows
    elif case.words["posterior"] in ("diag", "kronecker"):
        most = model.linear_model_.n_params
    elif case.words["inference"] in ("vi", "vi_batches", "swag"):
        most = model.linear_model_.n_params  # of q, whose curvature is a mean over draws
    least = -np.inf if case.words["inference"] == "swag" else -1e-6  # of no prior's precision
    assert least <= model.effective_dimension_ <= most * (1 + 1e-9) + 1e-6, (
        f"effective dimension {model.effective_dimension_} of {most}"
    )
    finite(model.gradient_norm_, "gradient_norm_")
    decrement = model.newton_decrement_
    assert decrement >= 0 or case.words["posterior"] == "independent", f"decrement {decrement}"


def check_evidence(case: Case, model: Any) -> None:
    """The scorer, the method and the attribute are one number."""
    if case.words["inference"] == "swag":
        assert np.isnan(model.log_marginal_likelihood_value_), "SWAG has an evidence"
        return
    own = model.log_marginal_likelihood()
    finite(own, "log_marginal_likelihood()")
    assert own == model.log_marginal_likelihood_value_
    weight = training_weight(case)
    seen = np.flatnonzero(weight > 0)
    rows = seen if model.posterior_indices_ is None else seen[model.posterior_indices_]
    given = None if case.weight is None else case.weight[rows]
    if case.words.get("noise") == "rows":  # the scorer knows it as weights and one level
        ratio = model.noise_std_ / noise_of_rows(case, model).numpy()[rows, 0]
        given = weight[rows] * ratio**2
        own -= float(weight[rows] @ np.log(ratio))
    if case.options.get("class_weight") == "balanced" and len(rows) < len(case.X):
        return  # "balanced" means other weights for other rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scored = marginal_likelihood_scorer(model, case.X[rows], case.y[rows], given)
    size = abs(own) + 1.0
    close = 1e-6 * size + rounding_of_log_determinant(model.posterior_)
    assert abs(scored - own) <= close, f"scorer {scored}, method {own}"


def rounding_of_log_determinant(posterior: Any) -> float:
    """√m ε Σ λ_max/λ_i over the eigenvalues of A or B, whose entries are sums of m products.

    Rounding moves such a sum by √m ε of its terms (Higham and Mary 2019), an eigenvalue by that of
    λ_max: a raw column of 1e5 makes λ_max/λ_i 1e13, and log|A| is known to 0.01 then, or worse.
    """
    in_weights = hasattr(posterior, "precision")
    gaussian = getattr(posterior, "precision", getattr(posterior, "B", None))
    terms = posterior.model.n_rows if in_weights else posterior.model.n_params
    several = gaussian if isinstance(gaussian, list) else [gaussian]  # of independent outputs
    return sum(_rounding_of_one(getattr(one, "factor", None), terms) for one in several)


def _rounding_of_one(factor: torch.Tensor | None, terms: int) -> float:
    if factor is None or factor.ndim != 2:
        return 0.0
    ratios = (torch.linalg.matrix_norm(factor, 2) / torch.linalg.svdvals(factor)).square()
    return terms**0.5 * float(torch.finfo(factor.dtype).eps * ratios.sum())


def check_probabilities(case: Case, model: Any) -> None:
    """Probabilities are finite, in [0, 1], sum to one, and their greatest is the prediction."""
    X = case.X_new
    for link in ("probit", "contrast", "mc", "map"):
        p = model.predict_proba(X, link=link)
        finite(p, f"predict_proba, link={link}")
        assert (p >= 0).all() and (p <= 1).all()
        np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-12, err_msg=link)
        log_p = model.predict_log_proba(X, link=link)
        finite(log_p, f"predict_log_proba, link={link}")
        np.testing.assert_allclose(np.exp(log_p), p, atol=1e-12)
    finite(model.decision_function(X), "decision_function")
    p = model.predict_proba(X)
    chosen = p[np.arange(len(p)), np.searchsorted(model.classes_, model.predict(X))]
    assert (chosen >= p.max(1) - 1e-9).all(), "predict is not the most probable class"
    for link in (None, "mc"):
        parts = model.predict_uncertainty(X, link=link)
        for name, value in parts.items():
            finite(value, name)
            assert (value >= -1e-12).all(), f"{name} is negative"
    assert set(np.unique(model.sample_y(X, 2))) <= set(model.classes_)


def check_regression(case: Case, model: Any) -> None:
    """Means, standard deviations and the distribution are finite, in the units of y, and agree."""
    mean, std = model.predict(case.X_new, return_std=True)
    parts = model.predict_uncertainty(case.X_new)
    finite_in_float64(case, model, (mean, std, *parts.values()), "predict")
    assert (std > 0).all() or case.words["noise"] == "ordinal"  # far out e^-1000 is left of it
    np.testing.assert_allclose(parts.total, std**2, rtol=1e-9)
    assert (parts.epistemic >= 0).all()
    finite_in_float64(case, model, [model.sample_y(case.X_new, 2)], "sample_y")
    if case.words["noise"] != "ordinal":
        _, covariance = model.predict(case.X_new, return_cov=True)
        finite_in_float64(case, model, [covariance], "return_cov")
    low, middle, high = np.moveaxis(model.predict_quantile(case.X_new, [0.05, 0.5, 0.95]), -1, 0)
    finite_in_float64(case, model, (low, middle, high), "predict_quantile")
    assert (low <= middle).all() and (middle <= high).all(), "quantiles do not rise"
    density = model.log_predictive_density(case.X, case.y)
    finite(density, "log_predictive_density")
    if case.words["noise"] in ("poisson", "ordinal"):
        assert (density <= 1e-12).all(), "a probability above one"


def finite_in_float64(case: Case, model: Any, values: Any, what: str) -> None:
    """Finite; of counts, whose moments are e^f, also infinity where float64 ends, and no NaN."""
    if case.words["noise"] == "poisson":
        f, V = (
            model._result.mean(as_double(case.X_new)),
            model._result.variance(as_double(case.X_new)),
        )
        if float((2.0 * f + 6.0 * V).max()) > 600.0:
            assert not any(np.isnan(value).any() for value in values), f"{what} is NaN"
            return
    for value in values:
        finite(value, what)


def check_oracle(case: Case, model: Any, options: Any, exact: Truth, V: torch.Tensor) -> None:
    """Variances, evidence, γ and mean by brute force; the prior bounds the posterior always."""
    prior, variance = exact.prior[:, : V.shape[1]], exact.variance[:, : V.shape[1]]
    excess = V - prior * (1 + 1e-7)
    assert bool((excess <= 1e-300).all()), f"posterior {V} above prior {prior}"
    known = not isinstance(model.posterior_, LowRankPosterior)
    if isinstance(options.inference, Laplace) and known:
        off = (V - variance).abs()
        allowed = 1e-6 * variance + 20 * EPS * exact.condition * prior
        assert bool((off <= allowed).all()), f"variance {V}, brute force {variance}"
        off = abs(model.effective_dimension_ - exact.gamma)
        allowed = 1e-7 * (exact.gamma + 1.0) + 20 * EPS * exact.trace
        assert off <= allowed, f"effective dimension {model.effective_dimension_}, {exact.gamma}"
    if not options.is_variational and known:
        found = model.log_marginal_likelihood(kind="laplace")
        allowed = 1e-7 * exact.size + 20 * EPS * exact.condition
        assert abs(found - exact.evidence) <= allowed, f"evidence {found}, {exact.evidence}"
    if not case.classifier:
        check_mean(case, model, exact.f_new, V)


def check_mean(case: Case, model: Any, f: torch.Tensor, V: torch.Tensor) -> None:
    """E[y] of f with these variances: f itself, or by another quadrature."""
    found = model.predict(case.X_new).reshape(len(f), -1)
    if case.words["noise"] == "poisson":
        most = math.log(np.finfo(float).max)
        log_mean = np.minimum(math.log(exposure(case)) + (f + 0.5 * V).numpy(), most)
        found = np.log(np.minimum(found, np.finfo(float).max))
        size = 1.0 + float(f.abs().max() + V.max())
        np.testing.assert_allclose(found, log_mean, atol=1e-9 * size, err_msg="mean")
    elif case.words["noise"] == "ordinal":
        z = torch.linspace(-9.0, 9.0, 20_001, dtype=torch.float64)[:, None]
        weight = torch.softmax(-0.5 * z[:, 0] ** 2, 0)
        for i, (m, v) in enumerate(zip(f, V, strict=True)):
            p, _ = categories(case, m + v.sqrt() * z)
            mean = weight @ (p @ torch.arange(p.shape[-1], dtype=torch.float64))
            np.testing.assert_allclose(found[i], mean.numpy(), atol=1e-6, err_msg="mean")
    else:
        mean = f[:, : found.shape[1]].numpy() * model.y_scale_ + model.y_mean_
        size = np.abs(mean).max() + model.y_scale_.max()
        np.testing.assert_allclose(found, mean, atol=1e-9 * size, err_msg="mean")


def check_brackets(case: Case, model: Any, exact: Truth, V: torch.Tensor) -> None:
    """Exact variances, evidence and γ within what the certificate of a low rank says.

    But for rounding: the trace that is left of G is a difference of sums of the size of tr G.
    """
    posterior, variance = model.posterior_, exact.variance[:, : V.shape[1]]
    slack = 1e-6 * variance + 20 * EPS * exact.condition * exact.prior[:, : V.shape[1]]
    low, high = (latent(model, end) for end in model.predict_std_bounds(case.X_new))
    assert bool((high == V).all()), "predict_std is not the upper end"
    if isinstance(options_of(model, case.classifier).inference, Laplace):
        assert bool((low <= variance + slack).all()), f"lower {low}, brute force {variance}"
        assert bool((variance <= high + slack).all()), f"upper {high}, brute force {variance}"
    assert bool((high <= (1 + posterior.error_bound) * (low + slack)).all()), "bracket too wide"
    lower, upper = model.log_marginal_likelihood_bounds(kind="laplace")
    slack = 1e-7 * exact.size + 20 * EPS * exact.trace
    assert lower - slack <= exact.evidence <= upper + slack, f"{lower}, {exact.evidence}, {upper}"
    found = model.log_marginal_likelihood(kind="laplace")
    assert abs(found - lower) <= slack, f"method {found}, lower end {lower}"


def check_moments(case: Case, model: Any, V: torch.Tensor) -> None:
    """SWAG's variances are J Σ Jᵀ at the network's own mean, Σ no less than nothing."""
    module = copy.deepcopy(model.module_).double().eval()
    J = jacobian(module, as_double(case.X_new), chosen_names(module, None))
    Sigma = torch.stack(
        [model.posterior_.solve(one) for one in torch.eye(J.shape[2], dtype=torch.float64)]
    )
    variance = torch.einsum("nkp,pq,nkq->nk", J, Sigma, J)[:, : V.shape[1]]
    size = torch.einsum("nkp,pq,nkq->nk", J.abs(), Sigma.abs(), J.abs())[:, : V.shape[1]]
    off = (V - variance).abs()
    assert bool((off <= 1e-9 * variance + 1e-12 * size).all()), f"variance {V}, {variance}"
    if not case.classifier:
        with torch.no_grad():
            check_mean(case, model, module(as_double(case.X_new)), V)


def check_failed_refit(case: Case, model: Any) -> None:
    """A second fit that fails late leaves everything as it was."""
    before, posterior = dict(vars(model)), model.posterior
    predictions = model.predict(case.X_new)
    model.posterior = Full(memory_limit=1e-6)
    y = case.y if case.classifier else 1000.0 * case.y
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(case.X, y, case.weight, **case.extra)
    except NAMED_ERRORS:
        pass
    else:
        raise AssertionError("a posterior of one byte was built")
    model.posterior = posterior
    now = vars(model)
    assert before.keys() == now.keys() and all(before[k] is now[k] for k in before)
    assert (model.predict(case.X_new) == predictions).all(), "a failed refit changed predictions"
