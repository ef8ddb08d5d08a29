"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# Compilation and busy machines make single examples slow; what is tested is their value.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
