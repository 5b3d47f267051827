"""A world and an algorithm that live outside the project's tree: what a user's own package looks like."""
