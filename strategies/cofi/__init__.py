"""CoFi: heads, units, whole sub-layers and the width, by random gates held to a size."""

from bplightning.strategies.cofi.cofi import CoFi

__all__ = ["CoFi"]
