"""Stars of a review, a task for bplightning."""
