"""The tasks that come with bplightning, one a file; found by entry point like anybody's."""
