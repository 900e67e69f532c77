"""The KV cache in host memory, the reference decode and prefill, and the comparison with them."""
