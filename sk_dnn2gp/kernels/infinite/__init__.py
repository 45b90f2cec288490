"""Kernels of networks of infinite width (:ref:`math-infinite`)."""
