"""Questions that pages ask, and their answers as data."""
