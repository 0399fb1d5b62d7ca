"""Hypothesis as the laws are tested with it: no deadlines on a shared machine, and failures say how to repeat them."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "laws", deadline=None, max_examples=100, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("laws")
