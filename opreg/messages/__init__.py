"""What a wrong call hears: ``op: expected X, got Y``, and the way out where there is one."""
