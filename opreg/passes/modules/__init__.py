"""The rewrite of a torch.nn.Module that is no graph: its parts are exchanged, and its forward is traced."""
