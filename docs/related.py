"""Which names of the reference belong together: written once, shown on the pages of both."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

# Every name of a group leads to every other of it.
GROUPS = (
    ("DNN2GPRegressor", "DNN2GPClassifier", "NNGPClassifier"),
    ("NNGPRegressor", "NNGPFeatures", "NNGPKernel"),
    ("DNN2GPRegressor", "plotting.PredictiveDisplay"),
    ("DNN2GPRegressor", "plotting.CoverageDisplay"),
    ("DNN2GPClassifier", "plotting.DecisionMapDisplay", "plotting.UncertaintyDisplay"),
    ("NNGPClassifier", "NNGPKernel", "ConvNetKernel"),
    ("DNN2GPRegressor", "save", "load"),
    ("training.NewtonCG", "training.GaussNewtonLM", "training.LBFGS", "training.FirstOrder"),
    ("training.FullBatch", "training.NewtonCG"),
    ("training.GaussNewtonLM", "optim.GaussNewton"),
    ("training.resolve_solver", "inference.resolve_inference", "posterior.resolve_posterior"),
    ("training.resolve_solver", "training.NewtonCG"),
    ("inference.Laplace", "inference.Variational", "inference.LinearizedVariational"),
    ("inference.SWAG", "inference.Snapshots", "posterior.SWAGPosterior"),
    ("inference.SWAG", "inference.Laplace", "inference.Variational"),
    ("inference.Result", "inference.Laplace", "linear_model.LinearModel"),
    ("inference.resolve_inference", "inference.Laplace"),
    ("posterior.Automatic", "posterior.Full", "posterior.LowRank"),
    ("posterior.Full", "posterior.WeightSpacePosterior", "posterior.FunctionSpacePosterior"),
    ("posterior.LowRank", "posterior.LowRankPosterior"),
    ("posterior.LowRank", "posterior.Kronecker", "posterior.SubsetOfData"),
    ("posterior.Kronecker", "posterior.KroneckerPosterior"),
    ("posterior.LastLayer", "posterior.SubsetOfWeights"),
    ("posterior.Diagonal", "posterior.DiagonalPosterior"),
    ("posterior.IndependentOutputs", "posterior.IndependentPosterior"),
    ("posterior.PosteriorSpecification", "posterior.Posterior", "posterior.resolve_posterior"),
    ("posterior.Posterior", "posterior.make_posterior", "posterior.PrecisionPosterior"),
    ("posterior.FunctionSpacePosterior", "posterior.output_gram"),
    ("marginal_likelihood_scorer", "TrainingSetSplit", "model_selection.MarginalLikelihoodScorer"),
    ("model_selection.undecided_candidates", "model_selection.MarginalLikelihoodScorer"),
    ("evidence_path", "optimize_hyperparameters", "plotting.MarginalLikelihoodDisplay"),
    ("evidence_path", "evidence.EvidenceSpectrum"),
    ("optimize_hyperparameters", "evidence.GroupedEvidence"),
    ("evidence.EvidenceSpectrum", "evidence.GroupedEvidence", "evidence.log_marginal_likelihood"),
    ("evidence.updated_noise_std", "evidence.updated_precision", "evidence.EvidenceSpectrum"),
    ("NTKKernel", "NTKFeatures", "linearize.Linearization"),
    ("NTKKernel", "InfiniteNTKKernel", "plotting.KernelDisplay"),
    ("NNGPKernel", "InfiniteNTKKernel", "InfiniteNetworkKernel", "NNGPFeatures"),
    ("ConvNetKernel", "ResNetKernel", "InfiniteNetworkKernel"),
    ("kernels.squared_rkhs_norm", "NTKKernel", "NNGPKernel", "linear_model.LinearModel"),
    ("plotting.KernelDisplay", "plotting.PosteriorMeanDisplay"),
    ("plotting.PredictiveDisplay", "plotting.CoverageDisplay"),
    ("datasets.make_sine_with_gap", "datasets.make_ring_and_core"),
    ("datasets.fetch_wine_quality_red", "datasets.fetch_mnist", "datasets.fetch_cifar10"),
    ("optim.VariationalOptimizer", "optim.VOGGN", "optim.VOGN", "optim.OGGN", "optim.OGN"),
    ("optim.VariationalOptimizer", "optim.GaussianWeights", "inference.Variational"),
    ("linearize.Linearization", "linearize.Recording", "linearize.symmetric_product"),
    ("linear_model.LinearModel", "linearize.Linearization", "likelihoods.Likelihood"),
    ("linear_model.LinearModel", "linear_model.IterationModel"),
    ("linear_model.IterationModel", "optim.VOGGN"),
    ("likelihoods.Likelihood", "likelihoods.Gaussian", "likelihoods.Bernoulli",
     "likelihoods.Categorical"),
    ("likelihoods.Likelihood", "likelihoods.Ordinal", "likelihoods.Poisson",
     "likelihoods.StudentT"),
    ("DNN2GPRegressor", "MixtureRegressor", "MixtureClassifier"),
    ("DNN2GPClassifier", "MixtureClassifier"),
    ("MixtureRegressor", "predictive.Mixture"),
    ("predictive.Predictive", "predictive.Normal", "predictive.Affine", "predictive.Mixture",
     "predictive.Quadrature", "predictive.PoissonLognormal", "predictive.StudentNormal"),
    ("likelihoods.Poisson", "predictive.PoissonLognormal"),
    ("likelihoods.StudentT", "predictive.StudentNormal"),
    ("likelihoods.Gaussian", "likelihoods.DiagonalGaussian",
     "likelihoods.HeteroscedasticGaussian", "predictive.NormalLognormal"),
    ("plotting.CoverageDisplay", "plotting.QuantileCalibrationDisplay"),
    ("log_predictive_density_scorer", "model_selection.LogPredictiveDensityScorer",
     "marginal_likelihood_scorer"),
    ("model_selection.leave_one_out_scorer", "model_selection.LeaveOneOutScorer",
     "evidence.leave_one_out"),
    ("model_selection.conditional_evidence_scorer", "model_selection.ConditionalEvidenceScorer",
     "model_selection.conditional_evidence", "model_selection.leave_one_out_scorer"),
    ("networks.MLP", "networks.LeNet5", "networks.Residual"),
    ("networks.MLP", "networks.Standardize"),
    ("networks.MLP", "networks.Erf"),
    ("DNN2GPRegressor", "integrations.BoTorchModel"),
    ("exceptions.ApproximationWarning", "posterior.Automatic"),
    ("exceptions.CholeskyJitterWarning", "exceptions.ConvergenceError"),
)  # fmt: skip


def table() -> dict[str, list[str]]:
    """{full name: full names of its relatives, in order}."""
    found: dict[str, list[str]] = defaultdict(list)
    for group in GROUPS:
        for one, other in combinations([f"sk_dnn2gp.{name}" for name in group], 2):
            for name, relative in ((one, other), (other, one)):
                if relative not in found[name]:
                    found[name].append(relative)
    return dict(found)
