"""The strategies that ship with bplightning, each a plugin like anybody's."""
