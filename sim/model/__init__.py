"""Models: layers and heads, config files, kernels of an operation, formats of K and V."""
