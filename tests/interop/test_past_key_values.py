"""PEFT hands prefixes on as ``past_key_values``: they are ours where Transformers answers behind these as we do."""

from dataclasses import replace

import pytest

from foreword.errors import UsageError
from foreword.interop.flat_prefix import check_past_key_values
from tiny_models import tiny_model


def test_an_encoder_that_counts_positions_otherwise_is_refused():
    lm = tiny_model("bert")
    check_past_key_values(lm, "a PEFT file")
    with pytest.raises(UsageError, match="does not put in front of its keys and positions"):
        check_past_key_values(replace(lm, first_position=1), "a PEFT file")
