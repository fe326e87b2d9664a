"""Model import, sampler loop, driver and command line."""
