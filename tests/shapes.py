"""What `jaxtyping.jaxtyped` checks, at a fraction of its time, which was half of a training with tiny networks.

For each call, `jaxtyped` binds the arguments to the signature, opens a context of shapes, and calls two functions of
beartype, whether or not an array is among the types. Here beartype wraps the function itself, and only functions
with arrays among their types have a context.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import is_dataclass

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

slowly = jaxtyping.jaxtyped
hints_of = {}  # by name and code: a function in a function is made often


def jaxtyped(typechecker):
    """Takes the place of `jaxtyping.jaxtyped`, with which the import hook decorates functions and classes."""
    return checked


def checked(made):
    """A function whose types are checked; a class, and of a dataclass its fields when they are set."""
    match made:
        case type():
            if is_dataclass(made) and not hasattr(made.__init__, "__wrapped__"):
                made.__init__ = checked(made.__init__)
            return made
        case classmethod() | staticmethod():
            return type(made)(checked(made.__func__))
        case property():
            return property(*(part and checked(part) for part in (made.fget, made.fset, made.fdel)))
        case _:
            return checked_function(made) if made.__annotations__ else made


def checked_function(function):
    """Arguments and result have their types, and sizes of one name are equal.

    A function in a function, made anew at each call, is checked if it has shapes: its other types are left to mypy.
    """
    names = function.__annotations__
    name = function.__module__, function.__qualname__, function.__code__
    hints, shapes = hints_of.get(name) or hints_of.setdefault(name, resolved(function))
    if not shapes and "<locals>" in function.__qualname__:
        return function
    if inspect.isgeneratorfunction(function):  # beartype would check arguments when the first value is asked for
        return slowly(function, typechecker=beartype)
    function.__annotations__ = hints
    watched = beartype(function)
    function.__annotations__ = watched.__annotations__ = names
    if not shapes:
        return watched

    @functools.wraps(function)
    def with_shapes(*args, **kwargs):
        with slowly("context"):
            try:
                return watched(*args, **kwargs)
            except BeartypeCallHintViolation:
                jaxtyping.print_bindings()
                raise

    return with_shapes


def resolved(function):
    """The types of arguments and result, `Any` where a name is not defined yet; and whether they have shapes."""
    hints = {name: resolved_hint(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    return hints, any(map(has_shape, hints.values()))


def resolved_hint(hint, names):
    def holder():
        pass

    holder.__annotations__ = {"hint": hint}
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["hint"]
    except Exception:  # as jaxtyping: whatever is wrong with a type, it is not checked
        return typing.Any


def has_shape(hint):
    """Of what is checked: arguments and results of functions that are passed are not."""
    if typing.get_origin(hint) is Callable:
        return False
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(hint)))
