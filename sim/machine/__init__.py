"""Machines: measured curves and rates with their sources, links, composition, availability."""
