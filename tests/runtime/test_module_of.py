import pytest
from fake_session import FakeSession
from torch import nn

from deploykit.errors import UsageError
from deploykit.runtime.opener import module_of, open_module
from deploykit.specs.preprocessing import Preprocessing


def test_module_of_a_session():
    module = nn.Flatten()
    session = open_module(module, preprocessing=Preprocessing(resize=(6, 6)), classes=3)
    with session:
        assert module_of(session) is module
    with pytest.raises(RuntimeError, match="closed"):
        module_of(session)


def test_module_of_another_session():
    fake = FakeSession(lambda images: images[:, 0, 0], classes=3, input_size=(6, 6))
    with pytest.raises(UsageError, match="is no torch module"):
        module_of(fake)
