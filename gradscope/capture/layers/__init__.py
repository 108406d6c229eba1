"""What is there: the recurrent layers of a model, and the rows of a batch that are kept."""
