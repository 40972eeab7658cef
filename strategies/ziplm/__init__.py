"""ZipLM: heads and units by second-order removal, to one size or a family of them."""

from bplightning.strategies.ziplm.ziplm import ZipLM

__all__ = ["ZipLM"]
