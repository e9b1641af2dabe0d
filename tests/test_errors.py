import inspect

import pytest

from deploykit import errors
from deploykit.errors import DeploykitError

TREE = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


def test_errors_docstring_draws_the_tree():
    """Each class is drawn once, below its parent, with its exit code if it changes that."""
    lines = [line for line in errors.__doc__.splitlines() if "Error" in line and "Each" not in line]
    depth_of = {}
    path: list[str] = []
    for line in lines:
        name = next(word for word in line.split() if word.endswith("Error"))
        depth = (line.index(name) - 4) // 4
        path[depth:] = [name]
        depth_of[name] = path[depth - 1] if depth else None
    for cls in TREE:
        parent = depth_of[cls.__name__]
        assert parent == (None if cls is DeploykitError else cls.__base__.__name__)
    assert len(depth_of) == len(TREE)


@pytest.mark.parametrize("cls", TREE)
def test_errors_have_message_hint_and_code(cls):
    error = cls("what failed", hint="what to do")
    assert (error.message, error.hint) == ("what failed", "what to do")
    assert str(error) == "what failed\nwhat to do"
    assert str(cls("what failed")) == "what failed"
    assert 1 <= cls.exit_code <= 6
