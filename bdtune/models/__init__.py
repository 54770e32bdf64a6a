"""Networks by name: one file each; what several share is in `bdtune.networks`."""
