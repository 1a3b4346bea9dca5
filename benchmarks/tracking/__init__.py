"""Speed and footprint of the tracking server, against MLflow's in the same run."""
