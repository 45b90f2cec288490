"""Every public class and function is documented in numpydoc's form, and so are its errors."""

import ast
import builtins
import functools
import importlib
import inspect
import pkgutil
import re
import sys

import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import sk_dnn2gp
import sk_dnn2gp.exceptions

# numpydoc's codes of what must be there: summary, parameters (all, no others, in order, with
# descriptions), returns. Layout of the first line and extended summaries are left to the writer.
REQUIRED = {"GL08", "SS01", "PR01", "PR02", "PR03", "RT01"}


INHERITED = {"get_params", "set_params", "diag", "is_stationary"}

# Rooms that no user imports from: the reference does not list them.
INTERNAL = {"estimators", "inference", "links", "training"}


def public_things():
    """Every public class and function, once, by its full name."""
    rooms = {info.name for info in pkgutil.iter_modules(sk_dnn2gp.__path__)} - INTERNAL
    rooms = sorted(room for room in rooms if not room.startswith("_"))
    things = {}
    for module in (sk_dnn2gp, *(importlib.import_module(f"sk_dnn2gp.{room}") for room in rooms)):
        for name in getattr(module, "__all__", []):
            thing = getattr(module, name)
            own = getattr(thing, "__module__", "").startswith("sk_dnn2gp")
            if own and (inspect.isclass(thing) or inspect.isfunction(thing)):
                things[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return dict(sorted(things.items()))


THINGS = public_things()


def own_classes(cls):
    """The package's own classes that a class is made of, itself first."""
    return [base for base in cls.__mro__ if base.__module__.startswith("sk_dnn2gp")]


# Bases are no public names, but what they raise comes out of the public classes' methods.
BASES = {
    f"{base.__module__}.{base.__qualname__}": base
    for thing in THINGS.values()
    if inspect.isclass(thing)
    for base in own_classes(thing)
}


def has_parameters(thing):
    """A class without an __init__ of its own has no parameters of its own to document."""
    if not inspect.isclass(thing):
        return True
    return "__init__" in vars(thing) and not getattr(thing, "_is_protocol", False)


@pytest.mark.parametrize("name", [name for name, thing in THINGS.items() if has_parameters(thing)])
def test_docstring(name):
    found = [(code, text) for code, text in validate(name)["errors"] if code in REQUIRED]
    assert not found


TOP = [name for name in sk_dnn2gp.__all__ if callable(getattr(sk_dnn2gp, name))]


@pytest.mark.parametrize("name", TOP)
def test_top_level_names_have_an_example_and_their_methods_are_documented(name):
    thing = getattr(sk_dnn2gp, name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        pytest.skip("an object of a class that is documented")
    assert "Examples\n" in inspect.getdoc(thing)
    classes = own_classes(thing) if inspect.isclass(thing) else [thing]
    for attribute, member in ((a, m) for cls in classes for a, m in vars(cls).items()):
        if attribute in INHERITED:  # scikit-learn documents them
            continue
        if inspect.isfunction(member) and not attribute.startswith("_"):
            path = f"{thing.__module__}.{name}.{attribute}"
            found = [(c, text) for c, text in validate(path)["errors"] if c in REQUIRED]
            assert not found, path


# ------------------------------------------------------------------------------- Raises sections

# What a class raises when it is made or called, its own docstring says.
OF_THE_CLASS = {"__init__", "__new__", "__post_init__", "__call__"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def syntax(module):
    """Functions and classes of a module's own file, by name, as ast nodes."""
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    # What stands in for a name that cannot be imported.
    tries = [n for n in body if isinstance(n, ast.Try)]
    body += [n for one in tries for part in (one, *one.handlers) for n in part.body]
    return {n.name: n for n in body if isinstance(n, (*FUNCTION, ast.ClassDef))}


def name_of(node):
    """ "ValueError" of ``ValueError(...)`` or ``builtins.ValueError``; None of anything else."""
    node = node.func if isinstance(node, ast.Call) else node
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def is_caught(error, handlers):
    """Whether an except clause of the same try names the class, a base of it, or nothing."""
    cls = getattr(builtins, error, None) or getattr(sk_dnn2gp.exceptions, error, Exception)
    caught = {base.__name__ for base in cls.__mro__} | {error}
    for handler in handlers:
        types = getattr(handler.type, "elts", [handler.type])
        if handler.type is None or caught & {name_of(one) for one in types}:
            return True
    return False


def walk(node, handlers=()):
    """Statements and expressions that run when ``node`` runs, with the except clauses around."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTION, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(child, ast.Try):
            for part in child.body:
                yield from walk(ast.Module([part], []), (*handlers, *child.handlers))
            rest = [*child.handlers, *child.orelse, *child.finalbody]
            yield from walk(ast.Module(rest, []), handlers)
            continue
        yield child, handlers
        yield from walk(child, handlers)


def methods(node):
    return {n.name: n for n in node.body if isinstance(n, FUNCTION)}


def raised(function, module, cls=None, helpers=True, seen=frozenset()):
    """Names of the classes that a function raises: itself, or by private helpers of its module."""
    found = set()
    for node, handlers in walk(function):
        errors = set()
        if isinstance(node, ast.Raise) and node.exc is not None:
            errors = {name_of(node.exc)}
        elif helpers and isinstance(node, ast.Call):
            helper, owner = private_helper(node.func, module, cls)
            if helper is not None and helper.name not in seen:
                errors = raised(helper, module, owner, True, seen | {helper.name})
        # A name in small letters is a variable that holds an error made elsewhere.
        named = {e for e in errors if e and e[0].isupper() and e != "NotImplementedError"}
        found |= {e for e in named if not is_caught(e, handlers)}
    return found


def private_helper(func, module, cls):
    """The function of this module that a call names: ``_f(...)``, ``self._f(...)``."""
    if isinstance(func, ast.Name) and func.id.startswith("_"):
        node = syntax(module).get(func.id)
        return (node, None) if isinstance(node, FUNCTION) else (None, None)
    own = isinstance(func, ast.Attribute) and name_of(func.value) in ("self", "cls")
    if own and cls is not None and func.attr.startswith("_"):
        return methods(cls).get(func.attr), cls
    return None, None


def documented(docstring):
    """The classes that a docstring's Raises section names, or its one sentence, where that is all.

    "Draw a matrix; ValueError if it is not square." says as much as a section would.
    """
    text = inspect.cleandoc(docstring or "")
    if "----" not in text:
        return {word for word in re.findall(r"\w+", text) if word.endswith("Error")}
    entries = NumpyDocString(text)["Raises"]
    named = (name for entry in entries for name in (entry.type or entry.name).split(","))
    return {name.strip().rpartition(".")[2] for name in named}


def undocumented(thing):
    """Where the errors of a class or function miss in docstrings: (place, class).

    A method's own raise statements are its docstring's matter. A check that methods share, in a
    private helper, may be said once, in the docstring of the class.
    """
    module, node = thing.__module__, syntax(thing.__module__)[thing.__name__]
    if not isinstance(node, ast.ClassDef):
        return {(thing.__name__, e) for e in raised(node, module) - documented(thing.__doc__)}
    missing, of_class = set(), documented(thing.__doc__)
    for name, method in methods(node).items():
        if name in OF_THE_CLASS:
            said = of_class | documented(ast.get_docstring(method))
            missing |= {(thing.__name__, e) for e in raised(method, module, node) - said}
        elif not name.startswith("_"):
            # An override without a docstring of its own has that of its base.
            said = documented(inspect.getdoc(getattr(thing, name)))
            errors = raised(method, module, node, helpers=False) - said
            errors |= raised(method, module, node) - said - of_class
            missing |= {(f"{thing.__name__}.{name}", e) for e in errors}
    return missing


@pytest.mark.parametrize("name", sorted(THINGS | BASES))
def test_errors_are_documented(name):
    assert not undocumented((THINGS | BASES)[name])


def _refuse(flag):
    if flag:
        raise KeyError("a helper's own")


class _Sample:
    """One of each: what the check must find, and what it must not.

    Raises
    ------
    ValueError
        If it is made.
    """

    def __init__(self):
        raise ValueError

    def bare(self):
        """Nothing is said here, only of the class."""
        raise ValueError("a reason")

    def shared(self):
        """The class says it."""
        self._check()

    def _check(self):
        raise ValueError("a reason")

    def compact(self):
        """Do nothing; TypeError if anything."""
        raise TypeError

    def through_a_helper(self):
        """Nothing is said either."""
        return [_refuse(flag) for flag in (1, 2)]

    def caught(self):
        """Not raised."""
        try:
            _refuse(True)
        except LookupError:
            self.seen = True

    def later(self):
        """Not raised here."""

        def inner():
            raise TypeError

        return inner


def test_the_check_finds_what_is_not_said():
    assert undocumented(_Sample) == {
        ("_Sample.bare", "ValueError"),
        ("_Sample.through_a_helper", "KeyError"),
    }
