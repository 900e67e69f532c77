"""Plans of decode jobs: split and residency, lowering, search, other systems."""
