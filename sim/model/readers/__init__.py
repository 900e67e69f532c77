"""Readers of Hugging Face configs: one short function a family, which gives a list of layers."""
