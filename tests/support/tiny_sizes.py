"""The sizes that every tiny model has."""

HIDDEN, HEADS, UNITS, LAYERS, VOCABULARY = 32, 4, 24, 3, 60
