"""Readers, writers and helpers that the packages share."""
