"""Run by test_registry, in a process that has the toy installed."""

import pytest

from revolve_assistant.errors import ProviderMissing, UnknownProvider, Unsupported
from revolve_assistant.providers import registry
from revolve_assistant.testing import MessengerConformance


class TestToy(MessengerConformance):
    @pytest.fixture
    def make(self):
        return lambda: registry.messenger("toy://x")


def test_the_registry_knows_it():
    assert {"toy", "needy", "memory"} <= set(registry.known())
    assert registry.find("TOY").__name__ == "revolve_toy"
    with pytest.raises(Unsupported, match="toy does not carry tasks"):
        registry.engine("toy://x")
    with pytest.raises(ProviderMissing, match="needy cannot be loaded: No module named 'no_such_library_at_all'"):
        registry.find("needy")
    with pytest.raises(UnknownProvider, match=r"no provider 'toi'; did you mean 'toy'\?"):
        registry.find("toi")
