"""What a user reads: reports, `explain`, statistics, and the records that caches keep."""
