"""Metrics, tables and pictures of trained systems."""
