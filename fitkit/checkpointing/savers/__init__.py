"""What the saving callbacks share: requests, retention, file names, overhead."""
