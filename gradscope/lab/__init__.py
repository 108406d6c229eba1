"""Experiments that come with gradscope: a zoo of small networks and tasks, and what is told of their trainings."""
