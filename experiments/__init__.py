"""Commands, presets, and the pairing of system names with models and guides."""
