"""The parts of `event_vs_chunk`: data, arms, trials, progress, figures."""
