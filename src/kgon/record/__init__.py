"""What a run leaves in its folder, and reports about it."""
