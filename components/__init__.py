"""The eight stages and the formats between them: plain functions that know no orchestrator."""
