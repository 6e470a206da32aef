"""What is trained and by which loss: the trainable prompt, the module of the Trainer, and the losses."""
