"""What follows from Jacobians: their products, Lyapunov exponents, sources and targets."""
