"""What calibration samples are, and what is measured on them."""
