"""A model on a device: weights, checkpoints, kernels, quantisation, chunked prefill."""
