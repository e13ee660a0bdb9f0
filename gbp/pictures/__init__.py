"""Files to arrays and maps to pictures."""
