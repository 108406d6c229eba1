"""What is trained: data, tasks, cells, models, and one training loop."""
