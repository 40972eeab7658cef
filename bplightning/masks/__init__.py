"""Masks: binary grids over weights, from a granularity to exact gradients."""
