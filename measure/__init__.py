"""Measurements on a device: profiles, runs, grids and recordings, as data."""
