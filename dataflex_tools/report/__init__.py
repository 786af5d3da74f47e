"""What an artifact holds, for people and for programs."""
