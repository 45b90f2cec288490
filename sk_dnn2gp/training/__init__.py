"""Training to a minimum of the MAP objective (:ref:`math-objective`, :ref:`math-newton`)."""

from .solvers import LBFGS, FirstOrder, FullBatch, GaussNewtonLM, NewtonCG, resolve_solver

__all__ = ["LBFGS", "FirstOrder", "FullBatch", "GaussNewtonLM", "NewtonCG", "resolve_solver"]
