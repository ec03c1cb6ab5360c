import pickle

import pytest

import tokenreel
from schemas import errors


def test_every_public_name_can_be_had():
    for name in tokenreel.__all__:
        assert getattr(tokenreel, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tokenreel.nothing


def test_every_error_survives_pickling_with_its_message():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(classes) > 20
    for cls in classes:
        error = cls("timeout", "it broke") if cls is errors.DecodeError else cls("it broke")
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (cls, "it broke")
        assert isinstance(copy, errors.TokenreelError)


def test_the_error_tree_in_the_docstring_names_every_class():
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert name in errors.__doc__
