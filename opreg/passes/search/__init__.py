"""How formulas are looked for in a graph: by normal form, not by spelling."""
