from __future__ import annotations

import pytest

from tests.options.opened import Drawn, with_and_without


@pytest.fixture(scope="session")
def plain() -> Drawn:
    """Return what the bundled model draws without any option."""
    return with_and_without()
