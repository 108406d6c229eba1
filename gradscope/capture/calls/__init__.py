"""What happens in a call of a recurrent layer, and in the backward pass that follows."""
