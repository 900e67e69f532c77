"""Storage tiers of a cached prefix: host memory, a file, another machine."""
