"""What several test files use: problems, rules, programs that are killed."""
