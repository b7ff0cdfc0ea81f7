"""Every registered intervention keeps every law."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from intervention_laws import LAWS, Model

from workbench.interventions import INTERVENTIONS

pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_law(llama: Model, name: str, law: Callable) -> None:
    law(llama, INTERVENTIONS[name])
