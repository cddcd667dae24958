"""What users see of an op, from its declaration: a function, a module, their documentation, stubs for editors."""
