"""Where a cached prefix is kept: host memory, a file, another machine."""
