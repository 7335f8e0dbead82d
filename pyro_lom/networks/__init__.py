"""The networks of models and guides, without any Pyro sites."""
