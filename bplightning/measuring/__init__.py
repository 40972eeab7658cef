"""What a model weighs and how fast it is: latency, FLOPs, parameters, bytes, latency tables."""
