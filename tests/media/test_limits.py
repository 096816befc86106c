"""Whatever a file claims or holds, decoding keeps its limits."""

import pytest

from caeav_hf.errors import CaeAvError
from caeav_hf.media.limits import DecodingLimits


def test_limits_are_settings(monkeypatch):
    assert DecodingLimits.from_environment() == DecodingLimits()
    monkeypatch.setenv("CAEAV_DECODING_MEMORY_MB", "800")
    assert DecodingLimits.from_environment() == DecodingLimits(memory_mb=800)
    for text in ("none", "0", "-3", "nan", "inf"):
        monkeypatch.setenv("CAEAV_DECODING_SECONDS", text)
        with pytest.raises(CaeAvError, match=f"CAEAV_DECODING_SECONDS is '{text}'; expected a positive number"):
            DecodingLimits.from_environment()
