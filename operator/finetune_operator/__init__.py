"""The operator: watches FineTuneJobs, decides (purely), acts, and says what it sees."""
