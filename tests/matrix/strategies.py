"""Every registered strategy at each granularity and scope that it can be told: `make matrix` runs them all."""

from __future__ import annotations

import pytest
from contract_classes import classes

pytestmark = pytest.mark.matrix

globals().update(classes(lambda name, case: True))
