import highspy  # noqa: F401 - pulp, which imports it too, takes an interrupt of that for its absence
