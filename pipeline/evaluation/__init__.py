"""Questions whose answers are known, asked of cached videos at several budgets, and scored."""
