"""What each command does: the parts put together, one file per verb."""
