"""Files of other people: where they may lie, what they are, and what their readers raise."""
