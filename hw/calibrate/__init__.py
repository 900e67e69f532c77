"""Timing operations on a device, and the profile made of them."""
