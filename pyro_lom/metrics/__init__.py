"""How good segmentations and samples are."""
