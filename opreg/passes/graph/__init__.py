"""What the rewrite knows of a torch.fx graph, and does to it."""
