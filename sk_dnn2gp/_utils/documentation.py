"""The link of scikit-learn's HTML display to the page of a class.

scikit-learn shows a question mark beside an estimator that leads to its page, by the private
attributes ``_doc_link_module`` and ``_doc_link_template`` (its guide for developers names them).
"""

from __future__ import annotations

import os
import sys

__all__ = ["ADDRESS", "Documented"]

# Address of the built pages, without a slash at its end; "" while they are published nowhere.
# The environment's SK_DNN2GP_DOCS, where it is set, stands before it.
ADDRESS = ""


def page_name(cls: type) -> str:
    """The name under which the reference lists a class: its shortest public one.

    Examples
    --------
    >>> import sk_dnn2gp
    >>> page_name(sk_dnn2gp.DNN2GPRegressor), page_name(sk_dnn2gp.training.NewtonCG)
    ('sk_dnn2gp.DNN2GPRegressor', 'sk_dnn2gp.training.NewtonCG')
    """
    package, room = cls.__module__.split(".")[:2]
    at_the_top = getattr(sys.modules[package], cls.__name__, None) is cls
    return f"{package}.{cls.__name__}" if at_the_top else f"{package}.{room}.{cls.__name__}"


class Documented:
    """A class whose page is in this package's documentation; a base left of ``BaseEstimator``.

    Examples
    --------
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> DNN2GPRegressor._doc_link_module
    'sk_dnn2gp'
    """

    _doc_link_module = "sk_dnn2gp"

    @property
    def _doc_link_template(self) -> str:
        """Where the pages are, with a place for the name; no link where they are nowhere."""
        address = os.environ.get("SK_DNN2GP_DOCS", ADDRESS).rstrip("/")
        return f"{address}/generated/{{page}}.html" if address else ""

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        """What the template's place takes."""
        return {"page": page_name(type(self))}
