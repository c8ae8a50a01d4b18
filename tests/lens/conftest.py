from __future__ import annotations

import pytest

from small import small_gpt
from specxai.zoo.gpt import GPT


@pytest.fixture
def gpt() -> GPT:
    return small_gpt()
