"""Inference on paired, clustered records: arrays in, frozen results out."""
