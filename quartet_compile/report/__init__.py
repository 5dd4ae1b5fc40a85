"""What a user reads: reports, statistics, and the records that caches keep."""
