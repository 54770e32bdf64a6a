"""Training stages that defenses share: supervised, contrastive, features, evaluation."""
