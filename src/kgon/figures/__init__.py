"""Figures: functions of data that return a matplotlib Figure."""
