"""What a child's weights do, and what that costs."""
