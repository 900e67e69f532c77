"""The `kvoverlap` command."""
