"""Where networks come from: the ``net`` argument understood, checked and started once a restart."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet
from skorch.callbacks import EpochScoring
from torch import Tensor, nn

from .._utils.copies import copied
from .._utils.warn import warn
from ..exceptions import ApproximationWarning
from ..networks import MLP

__all__ = [
    "NetworkSource",
    "check_logits",
    "check_outputs",
    "check_trainable",
    "module_dtype",
    "of_first_half",
]

# What autograd calls operations that only rearrange numbers.
_REARRANGING = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Select", "Alias")


class NetworkSource:
    """Where each restart's network comes from: the ``net`` argument, understood once.

    ``standardize``: mean and scale of the inputs, which the default network takes out. TypeError if
    ``net`` is no network; ValueError if it is a fitted skorch net that is not frozen, or a frozen
    one that is not fitted.
    """

    def __init__(
        self,
        net: Any,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        n_outputs: int,
        standardize: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.standardize = standardize
        self.net = net
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.n_outputs = n_outputs
        self._check()

    @property
    def is_frozen(self) -> bool:
        """Whether the network is used as trained."""
        return isinstance(self.net, FrozenEstimator)

    @property
    def brings_own_net(self) -> bool:
        """Whether the user gave a skorch net, with its own optimiser and callbacks."""
        return isinstance(self.net, NeuralNet)

    def frozen_module(self) -> nn.Module:
        """A copy of the trained module of a frozen net: the user's own stays as it is."""
        return copied(self.net.estimator.module_)

    def start(self, X: Tensor, restart: int) -> tuple[nn.Module, NeuralNet | None]:
        """A network to train, and its skorch net if the user brought one; with the generators
        seeded.

        ``restart`` > 0 draws fresh weights for a module instance too, whose own weights are the
        first start.
        """
        if self.brings_own_net:
            net = _prepared(clone(self.net, safe=False))
            net.initialize()
            return _materialised(net.module_, X), net
        if self.net is None:
            shape = (X.shape[1], tuple(np.atleast_1d(self.hidden_layer_sizes)))
            mlp = MLP(*shape, self.n_outputs, self.activation, standardize=self.standardize)
            return mlp, None
        module = self.net() if isinstance(self.net, type) else copied(self.net)
        module = _materialised(module, X)
        if restart > 0 and not isinstance(self.net, type):
            _reset_parameters(module)
        return module, None

    def inputs(self, X: Tensor) -> Tensor:
        """Whole numbers as they are where the network takes them (token indices), or as floats."""
        if X.is_floating_point():
            return X
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            module = self.frozen_module() if self.is_frozen else self.start(X, 0)[0]
            try:
                module.cpu().eval()(X[:1])
            except IndexError:  # an index beyond the vocabulary: an error of its own, later
                return X
            except (RuntimeError, TypeError):
                return X.double()
        return X

    @property
    def draws_weights(self) -> bool:
        """Whether another start means other weights: an instance of a module brings its own."""
        return not isinstance(self.net, nn.Module)

    def same_architecture(self, module: nn.Module, X: Tensor) -> bool:
        """Whether ``module`` is what :meth:`start` would give, weights apart."""
        if self.net is not None:
            return True
        with torch.random.fork_rng(devices=[]):
            mine = self.start(X, 0)[0].state_dict()
        theirs = module.state_dict()
        return {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}

    def count_params(self, X: Tensor) -> int:
        """P, from a network that is thrown away; the generators are left as found."""
        with torch.random.fork_rng(devices=[]):
            module, _ = self.start(X, 0)
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    def _check(self) -> None:
        if self.is_frozen:
            inner = self.net.estimator
            if not isinstance(getattr(inner, "module_", None), nn.Module):
                raise ValueError(
                    "net is a FrozenEstimator around an estimator without a trained torch module "
                    f"({type(inner).__name__}). Fit the skorch net before freezing it."
                )
        elif isinstance(self.net, NeuralNet):
            if getattr(self.net, "history_", None):
                warn(
                    "net is a fitted skorch net: a clone of it is trained from new weights. Wrap "
                    "it as sklearn.frozen.FrozenEstimator(net) to use it as trained.",
                    UserWarning,
                )
        elif isinstance(self.net, torch.jit.ScriptModule):
            raise ValueError(
                "net is TorchScript, whose weights cannot be arguments of a function, as "
                "derivatives need: give the module that it was made from."
            )
        elif not (
            self.net is None
            or isinstance(self.net, nn.Module)
            or (isinstance(self.net, type) and issubclass(self.net, nn.Module))
        ):
            raise TypeError(
                "net must be None, a torch Module class or instance, a skorch NeuralNet, or a "
                f"FrozenEstimator around a fitted one; got {type(self.net).__name__}."
            )


def _materialised(module: nn.Module, X: Tensor) -> nn.Module:
    """The module with the weights of lazy layers drawn, by its first pass."""
    if any(nn.parameter.is_lazy(p) for p in (*module.parameters(), *module.buffers())):
        kind = module_dtype(module) if X.is_floating_point() else X.dtype
        with torch.no_grad():
            module(X[:2].to(kind))
    return module


def _prepared(net: NeuralNet) -> NeuralNet:
    """Train on all rows, on which the GP conditions, unless a split is asked for or needed."""
    if _needs_validation(net):
        return net
    signatures = [
        inspect.signature(vars(c).get("__init__", object)).parameters for c in type(net).__mro__
    ]
    default = next((s["train_split"].default for s in signatures if "train_split" in s), None)
    if net.train_split is not None and _same_split(net.train_split, default):
        net.set_params(train_split=None)
    return net


def _needs_validation(net: NeuralNet) -> bool:
    """Whether a callback of the user's looks at the validation loss."""
    given = net.callbacks if isinstance(net.callbacks, list) else []
    for item in given:
        callback = item[1] if isinstance(item, tuple) else item
        monitor = getattr(callback, "monitor", None)
        scores = isinstance(callback, EpochScoring) and not callback.on_train
        if scores or (isinstance(monitor, str) and monitor.startswith("valid")):
            return True
    return False


def _same_split(split: Any, default: Any) -> bool:
    same_type = type(split) is type(default)
    return split is default or (same_type and vars(split) == vars(default))


def _reset_parameters(module: nn.Module) -> None:
    """Draw the trainable weights anew; those that need no gradient stay, to the bit."""
    held = [(p, p.detach().clone()) for p in module.parameters() if not p.requires_grad]
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset) and any(p.requires_grad for p in layer.parameters()):
            reset()
    with torch.no_grad():
        for p, value in held:
            p.copy_(value)


def check_trainable(module: nn.Module) -> None:
    """Refuse what mixes examples in training, warn of what training sees and the GP does not.

    ValueError if ``module`` holds a BatchNorm layer in training mode, or no weights to train; an
    ApproximationWarning if it holds a dropout layer.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("net has no weights to train (no parameter with requires_grad=True).")
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"net holds a BatchNorm layer ({name!r}), which mixes the examples of a batch "
                "while it trains, so that the loss is no sum over examples. Use LayerNorm or "
                "GroupNorm, or train the net yourself and pass "
                "sklearn.frozen.FrozenEstimator(net)."
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            warn(
                f"net holds a dropout layer ({name!r}): it is active in training and off in the "
                "Gaussian process, whose weights are then not at a minimum of the MAP loss. "
                "Set p=0; prior_precision is the regulariser here.",
                ApproximationWarning,
            )


def check_outputs(
    module: nn.Module, X: Tensor, n_outputs: int, outputs_per_target: int = 1
) -> None:
    """Raise ValueError if the module does not take X and give ``n_outputs`` numbers per example."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            f = module(X[:2])
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"net does not take X of shape {tuple(X.shape)} and dtype {X.dtype}: {error}"
        ) from error
    finally:
        module.train(training)
    wanted = (len(X[:2]), n_outputs)
    if not isinstance(f, Tensor) or tuple(f.shape) != wanted:
        found = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(
            f"net must return a tensor of shape (n_samples, {n_outputs}), here {wanted}, "
            f"but returned {found}. Give its last layer {n_outputs} output(s), one row per example."
            + (
                " noise_std='heteroscedastic' takes two for each target: the means of all targets, "
                "then the logarithms of their noise."
                if outputs_per_target > 1
                else ""
            )
        )


def check_logits(source: NetworkSource, X: Tensor) -> int:
    """Number of outputs of a classifier's network, which must be logits.

    ValueError if they are probabilities: rows that sum to one, or the values of a last Sigmoid.
    """
    with torch.random.fork_rng(devices=[]):
        module = source.frozen_module() if source.is_frozen else source.start(X, 0)[0]
    module = module.cpu().eval()
    try:
        with torch.enable_grad():  # the graph tells what the last operation was
            f = module(X.to(module_dtype(module)) if X.is_floating_point() else X)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"net does not take X of shape {tuple(X.shape)} and dtype {X.dtype}: {error}"
        ) from error
    if not isinstance(f, Tensor) or f.ndim != 2:
        found = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(
            f"net must return a tensor of logits of shape (n_samples, n_outputs), got {found}."
        )
    fractions = bool(((f >= 0) & (f <= 1)).all())
    sums_to_one = f.shape[1] > 1 and bool(((f.sum(1) - 1).abs() < 1e-4).all())
    if fractions and (sums_to_one or _last_operation(f).startswith("SigmoidBackward")):
        raise ValueError(
            "net returns probabilities, and logits are needed: remove the softmax or sigmoid at "
            "its end (a module for skorch's NeuralNetClassifier has one). The likelihood applies "
            "it, in a form that loses no digits."
        )
    return f.shape[1]


def _last_operation(f: Tensor) -> str:
    """Autograd's name of the last operation that did more than rearrange numbers."""
    step = f.grad_fn
    while step is not None and step.name().startswith(_REARRANGING):
        step = step.next_functions[0][0]
    return "" if step is None else step.name()


def of_first_half(module: nn.Module, n_outputs: int) -> nn.Module:
    """The network of the first half of its outputs alone, with the same weights in the same order.

    The choice is a dense layer without a gradient, which every linearisation knows.
    """
    like = {"dtype": module_dtype(module), "device": next(module.parameters()).device}
    choice = nn.utils.skip_init(nn.Linear, 2 * n_outputs, n_outputs, bias=False, **like)
    with torch.no_grad():
        choice.weight.copy_(torch.eye(n_outputs, 2 * n_outputs))
    choice.weight.requires_grad_(False)
    return nn.Sequential(module, choice)


def module_dtype(module: nn.Module) -> torch.dtype:
    """Precision of the module's first floating-point parameter."""
    for p in module.parameters():
        if p.is_floating_point():
            return p.dtype
    return torch.float64
