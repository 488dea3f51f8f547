"""``fit``, ``evaluate`` and ``predict``, built from a handler and run by ``engine``."""
