"""Learning a prompt on the Transformers `Trainer`: data, losses, and the run that ends in a published task."""
