"""What can be pruned of a model: attention and feed-forward groups, found from one table row a family."""
