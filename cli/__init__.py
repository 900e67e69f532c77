"""The kvoverlap command."""
