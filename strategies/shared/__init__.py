"""What several strategies share: targets, steering, scores and calibration."""
