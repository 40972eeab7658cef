"""Masks: binary grids over weights, built from a granularity, with exact gradients."""
