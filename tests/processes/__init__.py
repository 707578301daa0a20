"""Processes for tests, without the seconds that each would take to import torch and Lightning."""
