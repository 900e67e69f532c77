"""How long each task takes on a machine."""
