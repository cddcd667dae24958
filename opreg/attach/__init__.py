"""What is attached to a declaration when it is registered, one idea a module."""
