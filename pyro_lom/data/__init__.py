"""Data sets of scenes: images with optional labels and factors, stored on disk and read in minibatches."""
