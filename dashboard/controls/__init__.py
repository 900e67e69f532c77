"""Widgets of the sidebar that make a question."""
