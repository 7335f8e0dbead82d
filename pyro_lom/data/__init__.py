"""Scenes: images with optional labels and factors, on disk and in minibatches."""
