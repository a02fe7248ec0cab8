"""whence."""
