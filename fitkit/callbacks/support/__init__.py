"""Parts that several built-in callbacks share."""
