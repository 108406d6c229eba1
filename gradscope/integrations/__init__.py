"""Trainers and trackers of other libraries. Nothing here is imported until it is asked for.

* :mod:`gradscope.integrations.lightning`: a callback for Lightning's Trainer;
* :mod:`gradscope.integrations.transformers`: a callback for the Hugging Face Trainer;
* :mod:`gradscope.integrations.trackers`: a run's curves, verdicts and figures in TensorBoard, W&B, MLflow.

With Accelerate, ``gradscope.record`` takes the prepared model and optimizer as they are.
"""
