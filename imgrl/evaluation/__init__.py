"""Measuring a model: prompts, rules and reports."""
