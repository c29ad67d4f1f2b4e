"""The command line: what a person types and what is said to him. absl is imported here alone."""
