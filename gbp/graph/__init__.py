"""What a network means."""
