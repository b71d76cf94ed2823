"""The CUDA driver that is made of this machine's memory, for engines too."""

from tests.unit.runtime.backends.conftest import driver, fake_driver

__all__ = ["driver", "fake_driver"]
