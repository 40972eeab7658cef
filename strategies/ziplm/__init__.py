"""ZipLM: heads and units by second-order removal, to one size or several, one after another."""

from bplightning.strategies.ziplm.ziplm import ZipLM

__all__ = ["ZipLM"]
