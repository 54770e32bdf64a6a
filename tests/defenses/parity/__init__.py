"""Losses, masks and verdicts of defenses, compared with what published code gives on the same tiny inputs."""
